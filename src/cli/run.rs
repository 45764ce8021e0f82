//! Commands that bring a guest to life: `run`, `start`, `load`.

use std::fs::File;
use std::io::{self, Seek};
use std::path::Path;
use std::time::Duration;

use super::args::{LoadArgs, ReadyArgs, RunArgs, StartArgs};
use super::values::WaitFor;
use super::{Done, OK, Session, foreground};
use crate::api::client::{CallError, GuestClient, LOOK_DEADLINE};
use crate::api::{ErrorCode, Failure, GuestInfo, GuestState, LaunchSpec, LoadSpec};
use crate::config::{GuestDefinition, GuestFile, generate_mac, keep_identity};
use crate::guest::savefile;
use crate::host::registry::locate;
use crate::host::spawn::{Launched, launch};
use crate::show::guest::sentence;

/// How long a new guest may take to be built.
const BUILD_DEADLINE: Duration = Duration::from_mins(1);

/// `run`
pub fn run(session: &Session, args: RunArgs) -> Done {
    let (rm, interactive, duration) = (args.rm, args.interactive, args.duration);
    let ready = args.ready.clone();
    let definition = definition(args)?;
    // What is wrong with it is told by the guest process.
    let parameters = definition.guest.as_deref().map(vmm::scribbler::Params::parse);
    let scribbler = parameters.map(|p| p.map_or('.', |p| p.tag));
    let spec = LaunchSpec {
        definition,
        dirs: session.dirs.clone(),
        load: None,
        die_with_parent: rm,
        stdio_console: false,
        start_paused: ready.paused,
        receive: None,
    };
    let launched = launch_new(session, &spec, None, Some(BUILD_DEADLINE))?;
    if rm {
        let plan = foreground::Plan { interactive, duration, scribbler, wait_for: ready.wait_for };
        return foreground::attend(session, launched, &plan);
    }
    report(session, &launched.info, &ready)
}

/// The definition that the file and the flags make together.
fn definition(args: RunArgs) -> Result<GuestDefinition, Failure> {
    let base = match &args.file {
        Some(path) => GuestFile::read(path)?,
        None => GuestFile::default(),
    };
    let here = std::env::current_dir().map_err(|e| {
        let message = format!("the current directory cannot be used: {e}");
        Failure::new(ErrorCode::File, message, "change to a directory that exists")
    })?;
    base.overlaid(flags(args, &here)).finish()
}

fn flags(args: RunArgs, here: &Path) -> GuestFile {
    let mut flags = GuestFile {
        name: args.name,
        memory: args.memory,
        huge_pages: args.huge_pages.then_some(true),
        cpus: args.cpus,
        cpu_template: args.cpu_template,
        dirty_ring: args.dirty_ring.then_some(true),
        kernel: args.kernel,
        initrd: args.initrd,
        cmdline: args.cmdline,
        guest: args.guest,
        acpi: args.no_acpi.then_some(false),
        disks: args.disks,
        nets: args.nets,
        virtio_console: args.virtio_console.then_some(true),
        vsock_cid: args.vsock_cid,
        console_file: args.console_file,
        ..GuestFile::default()
    };
    flags.rebase(here);
    flags
}

/// `start`
pub fn start(session: &Session, args: StartArgs) -> Done {
    let StartArgs { name, ready } = args;
    if let Ok(client) = locate(&session.dirs, &name) {
        let info = client.info(LOOK_DEADLINE).map_err(|e| client.failure(e))?;
        session.out.result(&info, &format!("{} (it was started before)", sentence(&info)))?;
        return Ok(OK);
    }
    let path = session.dirs.definition(&name);
    if !path.exists() {
        return Err(Failure::new(
            ErrorCode::NotFound,
            format!("there is no definition {}", path.display()),
            "write it ('migrate help files'), or use: migrate run",
        ));
    }
    let mut file = GuestFile::read(&path)?;
    if file.name.get_or_insert_with(|| name.clone()) != &name {
        return Err(Failure::new(
            ErrorCode::BadDefinition,
            format!("{} names its guest differently", path.display()),
            format!("write name = \"{name}\" there, or leave the name out"),
        ));
    }
    session.dirs.prepare()?;
    keep_identity(&mut file, &session.dirs.identity(&name))?;
    let spec = LaunchSpec {
        definition: file.finish()?,
        dirs: session.dirs.clone(),
        load: None,
        die_with_parent: false,
        stdio_console: false,
        start_paused: ready.paused,
        receive: None,
    };
    let launched = launch_new(session, &spec, None, Some(BUILD_DEADLINE))?;
    report(session, &launched.info, &ready)
}

/// `load`
pub fn load(session: &Session, args: LoadArgs) -> Done {
    let shown = args.file.display();
    let unreadable = |e: io::Error| {
        let message = format!("cannot read the saved guest {shown}: {e}");
        Failure::new(ErrorCode::File, message, "check the path and its permissions")
    };
    let mut file = File::open(&args.file).map_err(unreadable)?;
    let saved = savefile::open(&file).map_err(|e| {
        let mut failure = e.failure();
        failure.0.message = format!("{shown}: {}", failure.0.message);
        failure
    })?;
    file.rewind().map_err(unreadable)?;
    let mut definition = saved.metadata.definition;
    let clone = args.clone_as.is_some();
    if let Some(name) = args.clone_as {
        definition.name = name;
        definition.uuid = uuid::Uuid::new_v4();
        for net in &mut definition.nets {
            net.mac = generate_mac();
        }
    }
    let spec = LaunchSpec {
        definition,
        dirs: session.dirs.clone(),
        load: Some(LoadSpec { clone, clock: args.clock.into() }),
        die_with_parent: false,
        stdio_console: false,
        start_paused: args.ready.paused,
        receive: None,
    };
    // Reading the memory takes as long as the disk needs.
    let launched = launch_new(session, &spec, Some(&file), None)?;
    report(session, &launched.info, &args.ready)
}

/// Launches a guest whose name must be free; clears up after a killed one of that name.
fn launch_new(
    session: &Session,
    spec: &LaunchSpec,
    load: Option<&File>,
    deadline: Option<Duration>,
) -> Result<Launched, Failure> {
    let name = &spec.definition.name;
    match locate(&session.dirs, name) {
        Ok(client) => {
            let failure = Failure::new(
                ErrorCode::NameTaken,
                format!("a guest '{name}' runs already"),
                format!("choose another name, or stop it: migrate stop {name}"),
            );
            let state = client.info(LOOK_DEADLINE).map(|info| info.state);
            return Err(state.map_or(failure.clone(), |state| failure.with_state(state)));
        }
        Err(absent) if matches!(absent.0.code, ErrorCode::NotFound | ErrorCode::MovedAway) => {}
        Err(other) => return Err(other),
    }
    launch(spec, load, session.global.timeout.or(deadline))
}

/// Waits for what the user wants to wait for, and says that the guest is there.
fn report(session: &Session, info: &GuestInfo, ready: &ReadyArgs) -> Done {
    let client = GuestClient::new(&info.name, session.dirs.guest(&info.name));
    if let Some(wait) = &ready.wait_for {
        session.out.progress(&format!("{}; waiting for '{}' …", sentence(info), wait.text));
        wait_for(session, &client, wait)?;
    }
    let name = &info.name;
    let words = format!(
        "{}\n  console: migrate console {name}\n  end:     migrate stop {name}",
        sentence(info)
    );
    session.out.result(info, &words)?;
    Ok(OK)
}

fn wait_for(session: &Session, client: &GuestClient, wait: &WaitFor) -> Result<(), Failure> {
    let name = client.name();
    let seen = match client.wait_console(&wait.text, wait.within) {
        Ok(result) => result.seen,
        // If it ended meanwhile, its end is what is worth telling.
        Err(CallError::Lost(_) | CallError::Connect(_)) => {
            locate(&session.dirs, name)?;
            false
        }
        Err(CallError::Refused(body)) if body.code == ErrorCode::Timeout => false,
        Err(other) => return Err(client.failure(other)),
    };
    if seen {
        return Ok(());
    }
    let failure = Failure::new(
        ErrorCode::Timeout,
        format!(
            "'{}' did not appear on the console of '{name}' within {} s",
            wait.text,
            wait.within.as_secs()
        ),
        format!("look at its console: migrate console {name}"),
    );
    let state = client.info(LOOK_DEADLINE).map_or(GuestState::Running, |info| info.state);
    Err(failure.with_state(state))
}
