//! Throughput and CPU cost of a QUIC link, both ends in this process: over loopback, or between
//! two network namespaces such as those of `scripts/lab`.
//!
//! ```text
//! cargo run --release -p migrate-engine --example link_bench                # the whole table
//! cargo run --release -p migrate-engine --example link_bench -- 8952 1 2000 # payload lanes MB
//! cargo run --release -p migrate-engine --example link_bench -- 1452 1 2000 12500000
//! link_bench --between lab-a lab-b 10.77.0.2 1452 1 512
//! ```
//!
//! The fourth number is a budget in bytes of UDP payload per second; then the rate of every two
//! seconds is printed, as counted at the sockets. The time is that from the first frame sent to
//! the last one received.

use std::{
    error::Error,
    fs::File,
    io::Write,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use migrate_engine::transport::{
    identity::Ephemeral,
    link::{Close, CloseCode, SourceLink, TargetLink},
    quic::{DataListener, Limiter, Settings, dial, tls},
};
use nix::{
    sched::{CloneFlags, setns},
    sys::resource::{UsageWho, getrusage},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const FRAME: usize = 64 << 10;

fn main() -> Result<()> {
    tls::install_default();
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let mut place = Place::default();
    if args.first().is_some_and(|a| a == "--between") {
        let [_, source, target, address] = args.get(..4).ok_or("--between NETNS NETNS ADDRESS")?
        else {
            return Err("--between NETNS NETNS ADDRESS".into());
        };
        let file = |name: &str| File::open(Path::new("/run/netns").join(name));
        place =
            Place { namespaces: Some((file(source)?, file(target)?)), address: address.parse()? };
        args.drain(..4);
    }
    let numbers: Vec<u64> = args.iter().map(|a| Ok(a.parse()?)).collect::<Result<_>>()?;
    let mut out = std::io::stdout();
    writeln!(out, "payload lanes      MB    MB/s  CPU s/GB   user    sys  lost %  RTT ms    MTU")?;
    if let [payload, lanes, megabytes, rest @ ..] = numbers.as_slice() {
        return once(&place, *payload, *lanes, *megabytes, rest.first().copied(), &mut out);
    }
    for payload in [1452, 8952, 65_000] {
        for lanes in [1, 2] {
            for _ in 0..3 {
                once(&place, payload, lanes, 2000, None, &mut out)?;
            }
        }
    }
    Ok(())
}

/// Where the two ends are.
struct Place {
    /// Network namespaces of source and target; those of this process if `None`.
    namespaces: Option<(File, File)>,
    /// Address of the target.
    address: IpAddr,
}

impl Default for Place {
    fn default() -> Self {
        Self { namespaces: None, address: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }
}

fn once(
    place: &Place,
    payload: u64,
    lanes: u64,
    megabytes: u64,
    rate: Option<u64>,
    out: &mut impl Write,
) -> Result<()> {
    let settings = Settings {
        payload: u16::try_from(payload)?,
        limiter: rate.map(|rate| Arc::new(Limiter::new(Some(rate)))),
        ..Settings::default()
    };
    let (source, target, advice) = connect(place, &settings, usize::try_from(lanes)?)?;
    for line in advice {
        writeln!(out, "{line}")?;
    }
    let (start, before) = (Instant::now(), cpu()?);
    let frames = megabytes * 1_000_000 / FRAME as u64 / lanes;
    let (senders, receivers) = (source.lanes, target.lanes);
    let mut threads = Vec::new();
    for lane in senders {
        threads.push(std::thread::spawn(move || {
            let frame = Bytes::from(vec![0x5a; FRAME]);
            (0..frames).all(|_| lane.blocking_send(frame.clone()).is_ok())
        }));
    }
    for mut lane in receivers {
        threads.push(std::thread::spawn(move || {
            let mut count = 0;
            while let Ok(Some(_)) = lane.blocking_recv() {
                count += 1;
            }
            count == frames
        }));
    }
    if let Some(limiter) = &settings.limiter {
        print_rates(limiter, &threads, out)?;
    }
    let complete = threads.into_iter().map(|t| t.join().unwrap_or(false)).fold(true, |a, b| a & b);
    let (took, after) = (start.elapsed().as_secs_f64(), cpu()?);
    std::thread::sleep(Duration::from_millis(150));
    let stats = source.handle.stats();
    target.handle.close(Close::new(CloseCode::Done, ""));
    #[expect(clippy::cast_precision_loss, reason = "printed with three digits")]
    {
        let gigabytes = (frames * lanes * FRAME as u64) as f64 / 1e9;
        let (user, system) = (after.0 - before.0, after.1 - before.1);
        let (lost, sent) = stats
            .lanes
            .iter()
            .fold((0, 0), |sum, l| (sum.0 + l.lost_packets, sum.1 + l.sent_packets));
        let lane = stats.lanes.first().copied().unwrap_or_default();
        writeln!(
            out,
            "{payload:7} {lanes:5} {megabytes:7} {:7.1} {:9.2} {:6.2} {:6.2} {:7.2} {:7.2} {:6}{}",
            gigabytes * 1e3 / took,
            (user + system) / gigabytes,
            user / gigabytes,
            system / gigabytes,
            lost as f64 * 100.0 / sent as f64,
            lane.rtt.as_secs_f64() * 1e3,
            lane.mtu,
            if complete { "" } else { "  INCOMPLETE" },
        )?;
    }
    Ok(())
}

/// Each end is made by a thread in its namespace: that is where its sockets and threads stay.
fn connect(
    place: &Place,
    settings: &Settings,
    lanes: usize,
) -> Result<(SourceLink, TargetLink, Vec<String>)> {
    let (ours, theirs) = (Ephemeral::generate()?, Ephemeral::generate()?);
    let (here, there) = (ours.fingerprint(), theirs.fingerprint());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let target = scope.spawn(move || -> std::result::Result<_, String> {
            enter(place.namespaces.as_ref().map(|n| &n.1))?;
            let listener = DataListener::bind(place.address, 0..0, lanes).map_err(text)?;
            tell.send(listener.addresses().map_err(text)?).map_err(text)?;
            let wait = Duration::from_secs(10);
            runtime()?.block_on(listener.accept(&theirs, here, settings, wait)).map_err(text)
        });
        let source = scope.spawn(move || -> std::result::Result<_, String> {
            enter(place.namespaces.as_ref().map(|n| &n.0))?;
            let addresses = told.recv().map_err(text)?;
            runtime()?.block_on(dial(&addresses, None, &ours, there, settings)).map_err(text)
        });
        let target = target.join().map_err(|_| "the target's thread panicked")?;
        let source = source.join().map_err(|_| "the source's thread panicked")?;
        let (source, advice) = source?;
        Ok((source, target?, advice.iter().map(ToString::to_string).collect()))
    })
}

fn text<E: std::fmt::Display>(error: E) -> String {
    format!("{error}")
}

fn runtime() -> std::result::Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)
}

/// Moves this thread, and those that it will start, into a network namespace.
fn enter(namespace: Option<&File>) -> std::result::Result<(), String> {
    namespace.map_or(Ok(()), |file| setns(file, CloneFlags::CLONE_NEWNET).map_err(text))
}

/// Prints the rate of every two seconds until the threads are done.
fn print_rates<T>(
    limiter: &Limiter,
    threads: &[std::thread::JoinHandle<T>],
    out: &mut impl Write,
) -> Result<()> {
    let mut last = (Instant::now(), limiter.total());
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        std::thread::sleep(Duration::from_secs(2));
        let now = (Instant::now(), limiter.total());
        #[expect(clippy::cast_precision_loss, reason = "printed with four digits")]
        let rate = (now.1 - last.1) as f64 / (now.0 - last.0).as_secs_f64();
        writeln!(out, "  {rate:12.0} bytes of UDP payload per second")?;
        last = now;
    }
    Ok(())
}

/// User and system time of this process in seconds.
fn cpu() -> Result<(f64, f64)> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a short run")]
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    Ok((seconds(usage.user_time()), seconds(usage.system_time())))
}
