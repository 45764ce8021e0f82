//! Which instance a command works on: the system's, the user's own, or a private one.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Dirs;
use crate::api::{ErrorCode, Failure};

/// Longest path of a Unix socket, in bytes (`sun_path` less its end).
pub const SOCKET_PATH_MAX: usize = 107;
/// The longest name in a guest's runtime directory.
const LONGEST_SOCKET: &str = "console.sock";

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Instance {
    /// `MIGRATE_HOME` if set, else the system's for root and the user's own for others.
    #[default]
    Auto,
    /// The system's.
    System,
    /// The user's own.
    User,
}

/// What the decision depends on.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The caller is root.
    pub root: bool,
    /// `MIGRATE_HOME`.
    pub migrate_home: Option<PathBuf>,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub xdg_state: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        // Empty and relative values count as unset (XDG base directory specification).
        let var = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        Self {
            root: nix::unistd::geteuid().is_root(),
            migrate_home: std::env::var_os("MIGRATE_HOME")
                .filter(|v| !v.is_empty())
                .and_then(|v| std::path::absolute(v).ok()),
            home: var("HOME"),
            xdg_config: var("XDG_CONFIG_HOME"),
            xdg_runtime: var("XDG_RUNTIME_DIR"),
            xdg_state: var("XDG_STATE_HOME"),
        }
    }
}

impl Dirs {
    /// The directories of the instance that is meant.
    ///
    /// # Errors
    /// `usage` if neither `HOME` nor the XDG variables say where the user's files lie.
    pub fn resolve(instance: Instance, around: &Surroundings) -> Result<Self, Failure> {
        match (instance, &around.migrate_home) {
            (Instance::Auto, Some(home)) => Ok(Self::below(home)),
            (Instance::System, _) => Ok(Self::system()),
            (Instance::Auto, None) if around.root => Ok(Self::system()),
            (Instance::Auto | Instance::User, _) => Self::user(around),
        }
    }

    /// A private instance, all below `home`.
    pub fn below(home: &Path) -> Self {
        Self { config: home.join("config"), run: home.join("run"), state: home.join("state") }
    }

    fn system() -> Self {
        Self {
            config: "/etc/migrate".into(),
            run: "/run/migrate".into(),
            state: "/var/lib/migrate".into(),
        }
    }

    fn user(around: &Surroundings) -> Result<Self, Failure> {
        let below = |xdg: &Option<PathBuf>, rest: &str| {
            let home = || around.home.as_ref().map(|home| home.join(rest));
            xdg.clone().or_else(home).map(|base| base.join("migrate")).ok_or_else(|| {
                Failure::new(
                    ErrorCode::Usage,
                    "HOME is not set, so there is no place for your guests' files",
                    "set HOME, or MIGRATE_HOME to a directory of your own",
                )
            })
        };
        let state = below(&around.xdg_state, ".local/state")?;
        let run = around.xdg_runtime.as_ref().map(|r| r.join("migrate"));
        Ok(Self {
            config: below(&around.xdg_config, ".config")?,
            run: run.unwrap_or_else(|| state.join("run")),
            state,
        })
    }

    /// Where the definition of the persistent guest `name` lies.
    pub fn definition(&self, name: &str) -> PathBuf {
        self.config.join("guests").join(format!("{name}.toml"))
    }

    /// Directory of the definitions of persistent guests.
    pub fn definitions(&self) -> PathBuf {
        self.config.join("guests")
    }

    /// Where the made-up parts of a persistent guest's identity are kept.
    pub fn identity(&self, name: &str) -> PathBuf {
        self.state.join("identity").join(format!("{name}.json"))
    }

    /// Makes sure that the sockets of guest `name` have paths that the kernel accepts.
    ///
    /// # Errors
    /// `bad-definition` with the way out.
    pub fn check_socket_paths(&self, name: &str) -> Result<(), Failure> {
        let longest = self.guest(name).dir().join(LONGEST_SOCKET);
        let length = longest.as_os_str().len();
        if length <= SOCKET_PATH_MAX {
            return Ok(());
        }
        let over = length.saturating_sub(SOCKET_PATH_MAX);
        Err(Failure::new(
            ErrorCode::BadDefinition,
            format!(
                "the socket path {} has {length} bytes; the kernel takes at most {SOCKET_PATH_MAX}",
                longest.display()
            ),
            format!(
                "use a name shorter by {over}, or set MIGRATE_HOME to a directory with a shorter path"
            ),
        ))
    }

    /// Makes the directories that a guest process needs, for their owner only.
    ///
    /// # Errors
    /// `file` if that fails, or if one exists and others may write to it.
    pub fn prepare(&self) -> Result<(), Failure> {
        for dir in [
            self.run.clone(),
            self.guests(),
            self.state.clone(),
            self.exits(),
            self.logs(),
            self.state.join("journal"),
            self.state.join("identity"),
            self.state.join("tracking"),
        ] {
            make_private(&dir)?;
        }
        Ok(())
    }
}

fn make_private(dir: &Path) -> Result<(), Failure> {
    let cannot = |e: std::io::Error| {
        Failure::new(
            ErrorCode::File,
            format!("cannot make the directory {}: {e}", dir.display()),
            "check the permissions above it, or set MIGRATE_HOME to a directory of your own",
        )
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(cannot)?;
    let found = fs::metadata(dir).map_err(cannot)?;
    let own = found.uid() == nix::unistd::geteuid().as_raw();
    if own && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::File,
        format!(
            "the directory {} belongs to another user, or others may write to it",
            dir.display()
        ),
        format!("make it yours: chown {} and chmod 700", nix::unistd::geteuid()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn around() -> Surroundings {
        Surroundings { home: Some("/h".into()), ..Surroundings::default() }
    }

    #[test]
    fn each_instance_has_its_place() {
        let user = Dirs::resolve(Instance::Auto, &around()).unwrap();
        assert_eq!(user.config, Path::new("/h/.config/migrate"));
        assert_eq!(user.run, Path::new("/h/.local/state/migrate/run"));
        assert_eq!(user.state, Path::new("/h/.local/state/migrate"));

        let xdg = Surroundings { xdg_runtime: Some("/run/user/1".into()), ..around() };
        assert_eq!(
            Dirs::resolve(Instance::User, &xdg).unwrap().run,
            Path::new("/run/user/1/migrate")
        );

        let root = Surroundings { root: true, ..around() };
        assert_eq!(Dirs::resolve(Instance::Auto, &root).unwrap().run, Path::new("/run/migrate"));
        assert_eq!(
            Dirs::resolve(Instance::User, &root).unwrap().config,
            Path::new("/h/.config/migrate")
        );

        let private = Surroundings { migrate_home: Some("/p".into()), ..root };
        assert_eq!(Dirs::resolve(Instance::Auto, &private).unwrap(), Dirs::below(Path::new("/p")));
        assert_eq!(
            Dirs::resolve(Instance::System, &private).unwrap().state,
            Path::new("/var/lib/migrate")
        );
        assert!(Dirs::resolve(Instance::Auto, &Surroundings::default()).is_err());
    }

    #[test]
    fn socket_paths_end_at_107_bytes() {
        // /p/run/guests/NAME/console.sock
        let fixed = "/p/run/guests//console.sock".len();
        let dirs = Dirs::below(Path::new("/p"));
        let name = |length| "a".repeat(length);
        assert!(dirs.check_socket_paths(&name(SOCKET_PATH_MAX - fixed)).is_ok());
        let refused = dirs.check_socket_paths(&name(SOCKET_PATH_MAX - fixed + 2)).unwrap_err();
        assert!(refused.0.remedy.contains("shorter by 2"), "{}", refused.0.remedy);
    }

    #[test]
    fn directories_are_private_and_foreign_ones_refused() {
        use std::os::unix::fs::PermissionsExt;
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        dirs.prepare().unwrap();
        dirs.prepare().unwrap();
        assert_eq!(fs::metadata(dirs.guests()).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(dirs.guests(), fs::Permissions::from_mode(0o770)).unwrap();
        assert!(dirs.prepare().unwrap_err().0.message.contains("others may write"));
    }
}
