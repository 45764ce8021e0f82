//! Guests that have a definition of their own on this host, `guests/NAME.toml`.

use std::fs;

use crate::api::{ErrorCode, Failure, LaunchSpec};
use crate::config::{Dirs, GuestDefinition, GuestFile, check_name, keep_identity};

/// Names of the guests that have a definition here.
pub fn names(dirs: &Dirs) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dirs.config.join("guests")) else { return Vec::new() };
    let name = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?.strip_suffix(".toml")?.to_owned();
        check_name(&name).is_ok().then_some(name)
    };
    let mut names: Vec<String> = entries.flatten().filter_map(name).collect();
    names.sort();
    names
}

/// What the user wrote about the guest `name`.
///
/// # Errors
/// `not-found`, `file` or `bad-definition`.
pub fn file(dirs: &Dirs, name: &str) -> Result<GuestFile, Failure> {
    let path = dirs.definition(name);
    if !path.exists() {
        return Err(Failure::new(
            ErrorCode::NotFound,
            format!("there is no definition {}", path.display()),
            "write it ('migrate help files'), or use: migrate run",
        ));
    }
    let mut file = GuestFile::read(&path)?;
    if file.name.get_or_insert_with(|| name.to_owned()) != name {
        return Err(Failure::new(
            ErrorCode::BadDefinition,
            format!("{} names its guest differently", path.display()),
            format!("write name = \"{name}\" there, or leave the name out"),
        ));
    }
    Ok(file)
}

/// The definition of the guest `name`, with the identity that it has kept since its first start.
///
/// # Errors
/// As [`file()`]; also if the identity cannot be kept.
pub fn definition(dirs: &Dirs, name: &str) -> Result<GuestDefinition, Failure> {
    let mut file = file(dirs, name)?;
    dirs.prepare()?;
    keep_identity(&mut file, &dirs.identity(name))?;
    file.finish()
}

/// The launch of a guest that simply starts.
pub fn launch_spec(dirs: &Dirs, definition: GuestDefinition) -> LaunchSpec {
    LaunchSpec {
        definition,
        dirs: dirs.clone(),
        load: None,
        die_with_parent: false,
        stdio_console: false,
        start_paused: false,
        receive: None,
        claim: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_keeps_its_identity_and_its_name() {
        let home = tempfile::tempdir().unwrap();
        let dirs = Dirs::below(home.path());
        assert_eq!(names(&dirs), [""; 0]);
        fs::create_dir_all(dirs.config.join("guests")).unwrap();
        for (name, text) in [
            ("one", "guest = \"scribbler\"\nautostart = true\n"),
            ("two", "name = \"other\"\nguest = \"scribbler\"\n"),
            ("Bad", ""),
        ] {
            fs::write(dirs.definition(name), text).unwrap();
        }
        assert_eq!(names(&dirs), ["one", "two"]);
        let first = definition(&dirs, "one").unwrap();
        assert_eq!((&*first.name, file(&dirs, "one").unwrap().autostart), ("one", Some(true)));
        assert_eq!(definition(&dirs, "one").unwrap().uuid, first.uuid);
        assert_eq!(definition(&dirs, "two").unwrap_err().0.code, ErrorCode::BadDefinition);
        assert_eq!(definition(&dirs, "three").unwrap_err().0.code, ErrorCode::NotFound);
    }
}
