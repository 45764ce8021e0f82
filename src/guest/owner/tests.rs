//! An owner with a fake machine, asked through its inbox and through its HTTP server.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use migrate_engine::handover::journal::Record as Step;
use migrate_engine::handover::term::{BootId, HostId};
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm::events::{EventSink, channel_pair};

use super::*;
use crate::api::{ErrorBody, ErrorCode, GuestInfo, SaveResult};
use crate::config::{DiskDefinition, GuestDefinition, OnCrash, OnHostStop};
use crate::guest::disks::DiskSet;
use crate::guest::inbox::sources;
use crate::guest::journal::{Journal, Whose};
use crate::guest::machine::MakeMachine;
use crate::guest::savefile;
use crate::guest::server::{Server, Sockets, Waited};
use crate::guest::testing::definition;
use crate::guest::testing::fake::{FakePaused, Fakes, Strings};

struct Rig {
    root: tempfile::TempDir,
    inbox: Inbox<FakePaused>,
    events: EventSink,
    strings: Strings,
    owner: JoinHandle<(Ended, Strings)>,
}

fn rig(change: impl FnOnce(&mut GuestDefinition)) -> Rig {
    rig_with(change, Begin::Fresh)
}

/// How the owner begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// With a guest that boots and runs.
    Fresh,
    /// It finds a SIGTERM then. The signal is sent to its thread alone, since other tests run in
    /// this process.
    Terminated,
    /// With a guest that was loaded and stands still.
    Loaded,
}

fn rig_with(change: impl FnOnce(&mut GuestDefinition), begin: Begin) -> Rig {
    let root = tempfile::tempdir().unwrap();
    let mut definition = definition("one");
    change(&mut definition);
    let (events, guest) = channel_pair().unwrap();
    let term = SigSet::from(Signal::SIGTERM);
    let signals = SignalFd::with_flags(&term, SfdFlags::SFD_NONBLOCK).unwrap();
    let (inbox, sources) = sources(guest, Some(signals), None).unwrap();
    let strings = Strings::default();
    let mut machines = Fakes(strings.clone());
    let machine = machines.boot().unwrap();
    let facts = Facts {
        definition,
        term: 1,
        started: Timestamp::now(),
        console: PathBuf::from("/console"),
        loaded_pause_ms: (begin == Begin::Loaded).then_some(5),
    };
    let whose = Whose {
        uuid: facts.definition.uuid,
        name: "one".into(),
        host_name: "h".into(),
        host: HostId(1),
        boot: BootId(2),
    };
    let owns = Step::Owner { term: migrate_engine::handover::term::Term::new(1) };
    let now = Timestamp::now();
    let record = whose.blank(now).after(owns, whose.boot, None, now).unwrap();
    let guest = facts.definition.uuid;
    let journal = Journal::take(&root.path().join("journal")).unwrap();
    let parts = Parts {
        machine: First::Paused(machine),
        machines,
        facts,
        journal: SharedJournal::new(journal, whose),
        disks: Arc::new([]),
        disk_set: Arc::new(DiskSet::start(guest, &[]).unwrap()),
        host_stop: HostStopFile {
            fresh: root.path().join("fresh"),
            path: root.path().join("saved"),
        },
        sources,
        inbox: inbox.clone(),
        marks: root.path().to_owned(),
        bound_to_caller: false,
        last_feed: None,
        mover: None,
    };
    let mut owner = Owner::new(parts).unwrap();
    owner.begin(record, begin != Begin::Loaded).unwrap();
    strings.take();
    let after = strings.clone();
    let owner = std::thread::spawn(move || {
        term.thread_block().unwrap();
        if begin == Begin::Terminated {
            pthread_kill(pthread_self(), Signal::SIGTERM).unwrap();
        }
        (owner.run(), after)
    });
    Rig { root, inbox, events, strings, owner }
}

impl Rig {
    fn ask(&self, command: Command) -> Result<Answer, Failure> {
        self.inbox.request(command).blocking_recv().expect("the owner answers")
    }

    fn info(&self, command: Command) -> GuestInfo {
        match self.ask(command).unwrap() {
            Answer::Info(info) => *info,
            other => panic!("{other:?}"),
        }
    }

    /// Facts, once they satisfy `wanted`. Events have no answer, so their effect is awaited.
    fn until(&self, wanted: impl Fn(&GuestInfo) -> bool) -> GuestInfo {
        loop {
            let info = self.info(Command::Info);
            if wanted(&info) {
                return info;
            }
        }
    }

    fn end(self) -> (Ended, tempfile::TempDir) {
        let (ended, strings) = self.owner.join().unwrap();
        assert_eq!(strings.alive.load(Ordering::SeqCst), 0, "the machine outlived its owner");
        (ended, self.root)
    }

    fn stop_now(self) {
        drop(self.inbox.request(Command::Stop { deadline: Duration::ZERO }));
        assert_eq!(self.end().0.how, ExitHow::Killed);
    }
}

fn save(file: &File, keep_running: bool) -> Command {
    Command::Save { file: file.try_clone().unwrap(), keep_running }
}

fn saved(answer: Result<Answer, Failure>) -> SaveResult {
    match answer.unwrap() {
        Answer::Save(result) => result,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pause_resume_reset_throttle() {
    let rig = rig(|_| ());
    assert_eq!(rig.info(Command::Info).state, GuestState::Running);
    assert_eq!(rig.info(Command::Pause).state, GuestState::Paused);
    assert_eq!(rig.info(Command::Pause).state, GuestState::Paused);
    assert_eq!(rig.strings.take(), ["pause"]);
    assert_eq!(rig.info(Command::Throttle(40)).cpu_share_percent, 40);
    let reset = rig.info(Command::Reset);
    assert_eq!((reset.state, reset.resets), (GuestState::Paused, 1));
    assert_eq!(reset.cpu_share_percent, 40);
    // The old machine is gone before the new one is made.
    assert_eq!(rig.strings.take(), ["drop", "boot"]);
    assert_eq!(rig.info(Command::Resume).state, GuestState::Running);
    rig.events.send(GuestEvent::TripleFault { vcpu: 0 });
    assert_eq!(rig.until(|i| i.resets == 2).state, GuestState::Running);
    rig.stop_now();
}

#[test]
fn the_network_hears_of_a_loaded_guest_when_it_first_runs() {
    let rig = rig_with(|_| (), Begin::Loaded);
    assert_eq!(rig.strings.take(), Vec::<String>::new());
    rig.info(Command::Resume);
    assert_eq!(rig.strings.take(), ["resume", "announce"]);
    rig.info(Command::Pause);
    rig.info(Command::Resume);
    assert_eq!(rig.strings.take(), ["pause", "resume"], "it is where it was");
    rig.stop_now();
}

#[test]
fn a_failed_reset_ends_the_guest_and_says_why() {
    let rig = rig(|_| ());
    rig.strings.fail_boot.store(true, Ordering::SeqCst);
    let reply = rig.inbox.request(Command::Reset);
    let (ended, _root) = rig.end();
    assert_eq!(ended.how, ExitHow::Crashed);
    assert!(ended.detail.unwrap().contains("no boot"));
    let (waiter, answer) = ended.farewells.into_iter().next().unwrap();
    waiter.send(answer);
    assert!(reply.blocking_recv().unwrap().is_err());
}

#[test]
fn stop_waits_for_the_guest_then_kills() {
    let stop = |ms| Command::Stop { deadline: Duration::from_millis(ms) };
    let first = rig(|_| ());
    let _reply = first.inbox.request(stop(60_000));
    first.until(|i| i.state == GuestState::Stopping);
    let busy = first.ask(stop(1)).unwrap_err();
    assert_eq!((busy.0.code, busy.0.retryable), (ErrorCode::Busy, true));
    assert_eq!(busy.0.guest_state, Some(GuestState::Stopping));
    first.events.send(GuestEvent::PowerOff);
    let (ended, _root) = first.end();
    assert_eq!((ended.how, ended.farewells.len()), (ExitHow::PoweredOff, 1));
    assert_eq!(ended.journal.last().unwrap().state, Term::Stopped);

    let late = rig(|_| ());
    late.info(Command::Pause);
    let _reply = late.inbox.request(stop(1));
    let strings = late.strings.clone();
    assert_eq!(late.end().0.how, ExitHow::Killed);
    assert_eq!(strings.take(), ["pause", "resume", "button", "drop"]);
}

#[test]
fn crashes() {
    let crash = || GuestEvent::Crash { reason: "boom".into() };
    let keep = rig(|d| d.on_crash = OnCrash::Keep);
    keep.events.send(crash());
    let info = keep.until(|i| i.state == GuestState::Crashed);
    assert_eq!(info.crash.as_deref(), Some("boom"));
    let no = keep.ask(Command::Resume).unwrap_err();
    assert_eq!(no.0.code, ErrorCode::WrongState);
    assert_eq!(keep.info(Command::Reset).state, GuestState::Running);
    keep.stop_now();

    let stop = rig(|_| ());
    stop.events.send(crash());
    let (ended, _root) = stop.end();
    assert_eq!((ended.how, ended.detail.as_deref()), (ExitHow::Crashed, Some("boom")));

    let restart = rig(|d| d.on_crash = OnCrash::Restart);
    for n in 1..=5 {
        restart.events.send(crash());
        restart.until(|i| i.resets == n);
    }
    restart.events.send(crash());
    assert_eq!(restart.end().0.how, ExitHow::Crashed);
}

#[test]
fn a_save_ends_the_guest_and_its_file_alone_continues_it() {
    let rig = rig(|_| ());
    let file = tempfile::tempfile().unwrap();
    let reply = rig.inbox.request(save(&file, false));
    let (mut ended, _root) = rig.end();
    assert_eq!(ended.how, ExitHow::Saved);
    let (waiter, answer) = ended.farewells.pop().unwrap();
    waiter.send(answer);
    let result = saved(reply.blocking_recv().unwrap());
    assert!(!result.running);
    assert_eq!((result.memory_bytes, result.file_bytes), (4096, file.metadata().unwrap().len()));
    let opened = savefile::open(&file).unwrap();
    let record = ended.journal.last().unwrap();
    assert_eq!(record.state, Term::Saved { save: opened.metadata.save });
    assert!(record.saved_ever);
    let mut page = None;
    savefile::load_memory(&file, &opened.header, &mut |at, bytes| {
        page = Some((at, bytes[..6].to_vec()));
        Ok(())
    })
    .unwrap();
    assert_eq!(page, Some((4096, b"booted".to_vec())));
}

#[test]
fn a_save_that_keeps_the_guest_running() {
    let first = rig(|_| ());
    let file = tempfile::tempfile().unwrap();
    let result = saved(first.ask(save(&file, true)));
    assert!(result.running);
    assert_eq!(first.info(Command::Info).state, GuestState::Running);
    assert_eq!(first.strings.take(), ["pause", "resume"]);
    first.info(Command::Pause);
    assert!(!saved(first.ask(save(&file, true))).running);
    drop(first.inbox.request(Command::Stop { deadline: Duration::ZERO }));
    let (ended, _root) = first.end();
    let record = ended.journal.last().unwrap();
    assert_eq!((record.state, record.saved_ever), (Term::Stopped, true));

    let disk = rig(|d| {
        d.disks.push(DiskDefinition {
            path: "/d".into(),
            read_only: false,
            shared: false,
            cache: crate::config::Cache::None,
            serial: String::new(),
        });
    });
    let no = disk.ask(save(&file, true)).unwrap_err();
    assert_eq!(no.0.code, ErrorCode::WritableDisk);
    disk.stop_now();
}

#[test]
fn a_failed_save_changes_nothing() {
    let rig = rig(|_| ());
    rig.strings.fail_save.store(true, Ordering::SeqCst);
    let file = tempfile::tempfile().unwrap();
    let failure = rig.ask(save(&file, false)).unwrap_err();
    assert_eq!(failure.0.guest_state, Some(GuestState::Running));
    assert!(savefile::open(&file).is_err());
    let record = crate::guest::journal::read(&rig.root.path().join("journal")).unwrap().unwrap();
    assert_eq!(record.state, Term::Owner);
    rig.stop_now();
}

#[test]
fn others_wait_while_a_save_is_written_but_a_kill_does_not() {
    let rig = rig(|_| ());
    rig.strings.hold_save.store(true, Ordering::SeqCst);
    let file = tempfile::tempfile().unwrap();
    let reply = rig.inbox.request(save(&file, false));
    rig.until(|i| i.state == GuestState::Saving);
    for command in [Command::Pause, Command::Reset, save(&file, true)] {
        assert_eq!(rig.ask(command).unwrap_err().0.code, ErrorCode::Busy);
    }
    let _stop = rig.inbox.request(Command::Stop { deadline: Duration::ZERO });
    let strings = rig.strings.clone();
    let release = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        strings.hold_save.store(false, Ordering::SeqCst);
    });
    let (ended, _root) = rig.end();
    release.join().unwrap();
    assert_eq!(ended.how, ExitHow::Killed);
    assert_eq!(ended.journal.last().unwrap().state, Term::Stopped);
    assert!(savefile::open(&file).is_err());
    assert_eq!(ended.farewells.len(), 2);
    drop(ended);
    assert!(reply.blocking_recv().is_err());
}

/// A reset that the guest asked for just before the save is in no machine state.
#[test]
fn a_reset_under_way_goes_before_the_save() {
    let rig = rig(|_| ());
    let events = rig.events.clone();
    *rig.strings.on_pause.lock().unwrap() = Some(Box::new(move || events.send(GuestEvent::Reset)));
    let file = tempfile::tempfile().unwrap();
    let failure = rig.ask(save(&file, false)).unwrap_err();
    assert_eq!((failure.0.code, failure.0.retryable), (ErrorCode::Busy, true));
    *rig.strings.on_pause.lock().unwrap() = None;
    assert_eq!(rig.until(|i| i.resets == 1).state, GuestState::Running);
    rig.stop_now();
}

#[test]
fn the_end_of_the_caller_is_the_end_of_the_guest() {
    let mut child =
        std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let caller = crate::guest::sys::pidfd(i32::try_from(child.id()).unwrap()).unwrap();
    let (_events, guest) = channel_pair().unwrap();
    let (_inbox, mut sources) = sources::<FakePaused>(guest, None, Some(caller)).unwrap();
    let soon = Some(Instant::now());
    assert!(matches!(sources.wait(soon), Event::Deadline));
    child.kill().unwrap();
    assert!(matches!(sources.wait(None), Event::CallerGone));
    // Not zombie-dependent, and told once.
    assert!(matches!(sources.wait(Some(Instant::now())), Event::Deadline));
    child.wait().unwrap();
}

#[test]
fn sigterm_saves_if_the_definition_says_so() {
    let saved = rig_with(|d| d.on_host_stop = OnHostStop::Save, Begin::Terminated);
    let (ended, root) = saved.end();
    assert_eq!(ended.how, ExitHow::Saved);
    let file = File::open(root.path().join("saved")).unwrap();
    let save = savefile::open(&file).unwrap().metadata.save;
    assert_eq!(ended.journal.last().unwrap().state, Term::Saved { save });
    assert!(!root.path().join("fresh").exists());
}

#[test]
fn sigterm_asks_the_guest_to_power_off_or_kills_it() {
    let asked = rig_with(|_| (), Begin::Terminated);
    asked.until(|i| i.state == GuestState::Stopping);
    asked.events.send(GuestEvent::PowerOff);
    assert_eq!(asked.end().0.how, ExitHow::PoweredOff);
    let killed = rig_with(|d| d.on_host_stop = OnHostStop::Kill, Begin::Terminated);
    assert_eq!(killed.end().0.how, ExitHow::Killed);
}

/// One HTTP exchange.
fn http(socket: &PathBuf, head: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(
        stream,
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[test]
fn the_api_over_its_sockets() {
    let rig = rig(|_| ());
    let at = |name: &str| rig.root.path().join(name);
    let (api, fd) = (at("api.sock"), at("fd.sock"));
    let sockets =
        Sockets { api: UnixListener::bind(&api).unwrap(), fd: UnixListener::bind(&fd).unwrap() };
    let console: crate::guest::server::WaitConsole = Arc::new(|text, _, given_up| match text {
        "forever" => {
            while !given_up.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            Waited::Late
        }
        "there" => Waited::Seen,
        "gone" => Waited::Gone,
        _ => Waited::Late,
    });
    let server = Server::start(sockets, rig.inbox.clone(), console).unwrap();

    let (status, body) = http(&api, "GET /v1/guest", "");
    let info: GuestInfo = serde_json::from_str(&body).unwrap();
    assert_eq!((status, info.state), (200, GuestState::Running));
    assert_eq!(http(&api, "POST /v1/pause", "").0, 200);
    let (status, _) = http(&api, "PUT /v1/throttle", r#"{"cpu_share_percent":50}"#);
    assert_eq!(status, 200);
    let failed = |(status, body): (u16, String)| {
        let body: ErrorBody = serde_json::from_str(&body).unwrap();
        (status, body.code)
    };
    let wrong = http(&api, "PUT /v1/throttle", r#"{"cpu_share_percent":0}"#);
    assert_eq!(failed(wrong), (400, ErrorCode::Usage));
    assert_eq!(failed(http(&api, "POST /v1/stop", "{")), (400, ErrorCode::Usage));
    assert_eq!(failed(http(&api, "GET /v1/nothing", "")), (400, ErrorCode::Usage));
    let no_token = r#"{"fd_token":"t","keep_running":false}"#;
    assert_eq!(failed(http(&api, "POST /v1/save", no_token)), (400, ErrorCode::Usage));
    for (text, seen) in [("there", true), ("elsewhere", false)] {
        let head = format!("GET /v1/wait-console?text={text}&timeout_ms=1");
        assert_eq!(http(&api, &head, "").1, format!(r#"{{"schema":1,"seen":{seen}}}"#));
    }

    let gone = http(&api, "GET /v1/wait-console?text=gone&timeout_ms=1", "");
    assert_eq!(failed(gone), (404, ErrorCode::NotFound));

    // Clients that go away free the places of those who wait.
    let head = "GET /v1/wait-console?text=forever&timeout_ms=600000 HTTP/1.1\r\nHost: x\r\n\r\n";
    for _ in 0..20 {
        let mut client = UnixStream::connect(&api).unwrap();
        client.write_all(head.as_bytes()).unwrap();
    }
    while http(&api, "GET /v1/wait-console?text=there&timeout_ms=1", "").0 != 200 {}

    let file = File::create_new(at("state")).unwrap();
    crate::api::fds::hand_over_fd(&fd, "t", file.as_fd()).unwrap();
    let client = std::thread::spawn(move || http(&api, "POST /v1/save", no_token));
    let (ended, _root) = rig.end();
    drop(ended.journal);
    for (reply, answer) in ended.farewells {
        reply.send(answer);
    }
    server.end();
    let (status, body) = client.join().unwrap();
    assert_eq!(status, 200);
    let result: SaveResult = serde_json::from_str(&body).unwrap();
    assert_eq!(result.memory_bytes, 4096);
}
