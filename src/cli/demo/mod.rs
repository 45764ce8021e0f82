//! `demo`: a live move between two hosts that are made for it on this machine, and the proof that
//! nothing was lost. It uses the same commands and the same daemons as everybody; what it says of
//! the blackout comes from an observer that reads consoles and nothing else.

mod observer;
mod world;

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::observer::{Observer, Seen};
use self::world::{GUEST, HOSTS, World};
use super::args::moving::DemoArgs;
use super::moving::display::Display;
use super::moving::{How, run_all, unexpected};
use super::{Done, OK, Session};
use crate::api::client::runtime;
use crate::api::host::MoveRequest;
use crate::api::moving::{MoveOptions, MoveReport};
use crate::api::{ErrorCode, Failure};
use crate::config::GuestPaths;
use crate::host::leftover::{Life, life};
use crate::show::demo::{Proof, next, proof};
use crate::show::outcome::outcome_word;

/// The key that makes a scribbler verify all of its memory.
const VERIFY_KEY: u8 = b'v';
/// How long it may take for that, and to fill it at its start.
const VERIFY_DEADLINE: Duration = Duration::from_mins(3);
/// How long the heartbeat is watched before the move, to see what is usual.
const USUAL: Duration = Duration::from_secs(2);
/// How long is waited, once the guest is moved, for its heartbeat at the destination and for the
/// end of its process at the source.
const ARRIVAL_DEADLINE: Duration = Duration::from_secs(10);
/// Least RAM of the guest.
const MEMORY_MIN: u64 = 64 << 20;

/// `demo`
pub fn demo(session: &Session, args: &DemoArgs) -> Done {
    if let Some(base) = &args.remove {
        drop(World::kept(base)?);
        let words = format!("{} and all that ran there is gone.", base.display());
        session.out.result(&serde_json::json!({"schema": 1, "removed": base}), &words)?;
        return Ok(OK);
    }
    if args.memory < MEMORY_MIN {
        return Err(Failure::new(
            ErrorCode::Usage,
            "the guest of the demo needs at least 64M of RAM",
            "migrate demo --memory 64M",
        ));
    }
    crate::adapter::check_kvm()?;
    let runtime = runtime().map_err(|e| unexpected(&e))?;
    // From here on no signal ends us without cleaning up.
    let (mut ending, mut interrupt) = {
        let _inside = runtime.enter();
        (Ending::new()?, signal(SignalKind::interrupt()).map_err(|e| unexpected(&e))?)
    };
    let mut world = World::new(args.keep)?;
    let shown = runtime.block_on(async {
        tokio::select! {
            shown = show(session, args, &mut world, &mut interrupt) => shown,
            () = ending.asked() => Ok(Shown::Interrupted),
        }
    });
    drop(runtime);
    let done = match shown {
        Ok(Shown::Proof(proof)) => conclude(session, &world, &proof),
        Ok(Shown::Interrupted) => {
            let base = world.base().display();
            let next = if world.is_kept() {
                format!("remove it: migrate demo --remove {base}")
            } else {
                "run it again: migrate demo".to_owned()
            };
            Err(Failure::new(ErrorCode::Interrupted, "the demo was interrupted", next))
        }
        Err(failure) => Err(failure),
    };
    if world.is_kept() {
        session.out.progress(&format!("The two hosts stay in {}", world.base().display()));
    } else {
        session.out.progress("Ending both hosts and removing what they left …");
    }
    drop(world);
    done
}

/// Whoever asks us to end. Ctrl-C during the move belongs to the move, which is cancelled.
struct Ending {
    terminate: Signal,
    hangup: Signal,
}

impl Ending {
    fn new() -> Result<Self, Failure> {
        let on = |kind| signal(kind).map_err(|e| unexpected(&e));
        Ok(Self { terminate: on(SignalKind::terminate())?, hangup: on(SignalKind::hangup())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// How the demo went.
#[derive(Debug)]
enum Shown {
    Proof(Box<Proof>),
    Interrupted,
}

/// A step that Ctrl-C ends, also one that came before it.
async fn step<R>(
    interrupt: &mut Signal,
    work: impl Future<Output = Result<R, Failure>>,
) -> Result<Option<R>, Failure> {
    tokio::select! {
        biased;
        _ = interrupt.recv() => Ok(None),
        done = work => done.map(Some),
    }
}

async fn show(
    session: &Session,
    args: &DemoArgs,
    world: &mut World,
    interrupt: &mut Signal,
) -> Result<Shown, Failure> {
    let out = session.out;
    let say = |words: &str| out.progress(words);
    say(&format!("Two hosts, {} and {}, in {}", HOSTS[0], HOSTS[1], world.base().display()));
    if step(interrupt, world.found(&say)).await?.is_none()
        || step(interrupt, begin(args, world, &say)).await?.is_none()
    {
        return Ok(Shown::Interrupted);
    }
    let (source, target) = (world.source(), world.target());
    let observer = Observer::start(
        &source.dirs.guest(GUEST).console(),
        target.dirs.guest(GUEST).console(),
        '.',
    )
    .map_err(|e| console(&e))?;
    let usual = async {
        tokio::time::sleep(USUAL).await;
        Ok(())
    };
    say("An observer reads the heartbeat on both consoles, from outside.");
    if step(interrupt, usual).await?.is_none() {
        return Ok(Shown::Interrupted);
    }
    say(&format!("[{}] $ migrate {GUEST} --to {}", source.name, target.name));
    let request = MoveRequest {
        guest: GUEST.to_owned(),
        to: target.name.to_owned(),
        options: MoveOptions::default(),
        wait: false,
    };
    let display = Display::new(out, true);
    observer.move_begins();
    let (ends, interrupted) = run_all(&source.daemon, &display, vec![request], 1).await?;
    drop(display);
    let report = match ends.into_iter().next().map(|end| end.how) {
        Some(How::Failed(failure)) => return Err(failure),
        Some(How::Ended(report)) if interrupted => {
            say(&format!("{GUEST}: {}", outcome_word(&report)));
            return Ok(Shown::Interrupted);
        }
        Some(How::Ended(report)) if report.exit_code() == OK => report,
        Some(How::Ended(report)) => return Err(not_moved(&report)),
        Some(How::Left(_) | How::Already(_)) | None => return Ok(Shown::Interrupted),
    };
    say("It looks at every page of its memory now …");
    let (here, there) = (source.dirs.guest(GUEST), target.dirs.guest(GUEST));
    match step(interrupt, verify(&observer, &here, &there)).await? {
        None => Ok(Shown::Interrupted),
        Some(seen) => Ok(Shown::Proof(Box::new(gather(world, args, &seen, *report)))),
    }
}

/// Starts the guest and waits until its memory is filled.
async fn begin(args: &DemoArgs, world: &World, say: &(dyn Fn(&str) + Sync)) -> Result<(), Failure> {
    // A quarter is written again and again, half is written once, the rest never.
    let mib = args.memory >> 20;
    let guest = format!("scribbler:ws={}M,data={}M,rate=2000,compress=50,hb=1ms", mib / 4, mib / 2);
    let memory = format!("{mib}M");
    let source = world.source();
    say(&format!(
        "[{}] $ migrate run {GUEST} --memory {memory} --cpus 2 --guest {guest}",
        source.name
    ));
    let wait = "console:SCRIBBLER-READY,3m";
    source
        .run(&[
            "run",
            GUEST,
            "--memory",
            &memory,
            "--cpus",
            "2",
            "--guest",
            &guest,
            "--wait-for",
            wait,
        ])
        .await
        .map(|_| ())
}

fn console(e: &io::Error) -> Failure {
    Failure::new(
        ErrorCode::Unexpected,
        format!("the guest's console cannot be used: {e}"),
        "run the demo again",
    )
}

fn not_moved(report: &MoveReport) -> Failure {
    report.error.clone().map_or_else(
        || Failure::new(ErrorCode::MoveFailed, "the guest was not moved", "migrate demo --keep"),
        |error| Failure(Box::new(error)),
    )
}

/// Waits for the heartbeat at the destination, then for the verdict on all of the guest's memory
/// and for the end of its process at the source.
async fn verify(
    observer: &Observer,
    source: &GuestPaths,
    target: &GuestPaths,
) -> Result<Seen, Failure> {
    let wait = async |limit: Duration, there: &dyn Fn(&Seen) -> bool| {
        let looking = async {
            while !there(&observer.seen()) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(limit, looking).await.is_ok()
    };
    // What is not seen is missing from the proof.
    wait(ARRIVAL_DEADLINE, &|seen| seen.beats.blackout().is_some()).await;
    observer::press(&target.console(), VERIFY_KEY).map_err(|e| console(&e))?;
    wait(VERIFY_DEADLINE, &|seen| seen.verdict.is_some()).await;
    wait(ARRIVAL_DEADLINE, &|_| !lives(source)).await;
    Ok(observer.seen())
}

/// Whether a guest has a process.
fn lives(paths: &GuestPaths) -> bool {
    matches!(life(paths), Ok(Life::Alive))
}

fn gather(world: &World, args: &DemoArgs, seen: &Seen, report: MoveReport) -> Proof {
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let at_destination =
        lives(&world.target().dirs.guest(GUEST)) && !lives(&world.source().dirs.guest(GUEST));
    let (sound, verified_pages, _) = seen.verdict.unwrap_or_default();
    let verified = sound && seen.complaint.is_none();
    let blackout_ms = seen.beats.blackout().map(ms);
    let equal = report.digest_equal == Some(true) && report.audit_equal == Some(true);
    Proof {
        schema: 1,
        r#type: "result",
        ok: at_destination && verified && equal && blackout_ms.is_some(),
        at_destination,
        verified,
        verified_pages,
        heartbeats: seen.beats.count,
        blackout_ms,
        usual_gap_ms: ms(seen.beats.usual),
        copying_gap_ms: ms(seen.beats.copying),
        kept: args.keep.then(|| world.base().to_owned()),
        report,
    }
}

fn conclude(session: &Session, world: &World, found: &Proof) -> Done {
    let kept = world.is_kept().then(|| world.base());
    let words = format!("{}\n\n{}", proof(found, session.out.style), next(kept, GUEST, HOSTS));
    session.out.result(found, &words)?;
    if found.ok {
        return Ok(OK);
    }
    Err(Failure::new(
        ErrorCode::Unexpected,
        "the guest was moved, and not everything is as it should be",
        "run it again with --keep, and report what 'migrate report guest1 --json' says",
    ))
}
