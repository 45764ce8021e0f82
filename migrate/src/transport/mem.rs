//! A link inside one process, for tests.
//!
//! Same queues and limits as any other link. Each stream has its own courier, which holds one
//! frame at a time for a seeded number of turns of the scheduler: frames of different lanes
//! overtake each other, frames of one lane never do. On a `current_thread` runtime the same seed
//! gives the same order.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::link::{
    Control, Ended, FrameReceiver, FrameSender, Guard, Incoming, Link, LinkHandle, LinkLimits,
    Outgoing, Shared, SourceLink, StreamLimits, TargetLink, incoming, outgoing,
};

/// How an in-memory link behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Number of bulk lanes.
    pub lanes: usize,
    /// Queues and frame sizes.
    pub limits: LinkLimits,
    /// Where the delays come from.
    pub seed: u64,
    /// A frame waits for 0 to this many turns of the scheduler.
    pub max_turns: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { lanes: 1, limits: LinkLimits::default(), seed: 0, max_turns: 0 }
    }
}

/// The cable between the two ends.
#[derive(Debug, Clone)]
pub struct Cable {
    up: Arc<watch::Sender<bool>>,
    ends: [Arc<Shared>; 2],
}

impl Cable {
    /// Stops everything in flight; nothing is lost. [`heal`](Self::heal) lets it go on.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    /// Ends a cut.
    pub fn heal(&self) {
        self.up.send_replace(true);
    }

    /// Ends the link on both sides, as an idle timeout does.
    pub fn sever(&self) {
        for end in &self.ends {
            end.end(Ended::Lost("the cable was severed".into()));
        }
    }
}

/// SplitMix64: one multiplication away from a counter, and enough to shuffle with.
#[derive(Debug)]
struct Turns {
    state: u64,
    max: u32,
}

impl Turns {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % (u64::from(self.max) + 1)
    }
}

/// Makes both ends of a link and the cable between them. Needs an async runtime.
pub fn pair(options: Options) -> (SourceLink, TargetLink, Cable) {
    let ends = [Shared::new(options.lanes), Shared::new(options.lanes)];
    let guards = [0, 1].map(|i: usize| Arc::new(Guard(Arc::clone(&ends[i]))));
    let cable = Cable { up: Arc::new(watch::Sender::new(true)), ends };
    let mut streams = 0;
    let mut stream = |from: usize, limits: StreamLimits| -> (FrameSender, FrameReceiver) {
        let (sender, out) = outgoing(&guards[from], limits);
        let (into, receiver) = incoming(&guards[1 - from], limits);
        streams += 1;
        let turns = Turns { state: options.seed ^ (streams << 32), max: options.max_turns };
        tokio::spawn(carry(out, into, cable.up.subscribe(), turns, cable.ends.clone()));
        (sender, receiver)
    };
    let limits = options.limits;
    let (to_target, from_source) = stream(0, limits.control);
    let (to_source, from_target) = stream(1, limits.control);
    let (urgent_tx, urgent_rx) = stream(0, limits.urgent);
    let (lanes_tx, lanes_rx) = (0..options.lanes).map(|_| stream(0, limits.bulk)).unzip();
    for from in 0..2 {
        let (ours, peers) = (Arc::clone(&cable.ends[from]), Arc::clone(&cable.ends[1 - from]));
        tokio::spawn(pass_on_the_end(ours, peers));
    }
    let [source, target] = guards.map(LinkHandle::new);
    (
        Link {
            control: Control { sender: to_target, receiver: from_target },
            urgent: urgent_tx,
            lanes: lanes_tx,
            handle: source,
        },
        Link {
            control: Control { sender: to_source, receiver: from_source },
            urgent: urgent_rx,
            lanes: lanes_rx,
            handle: target,
        },
        cable,
    )
}

/// Carries the frames of one stream.
async fn carry(
    mut out: Outgoing,
    into: Incoming,
    mut up: watch::Receiver<bool>,
    mut turns: Turns,
    ends: [Arc<Shared>; 2],
) {
    let work = async {
        while let Some(frame) = out.queue.recv().await {
            for _ in 0..turns.next() {
                tokio::task::yield_now().await;
            }
            if up.wait_for(|up| *up).await.is_err() {
                return;
            }
            let frame: Bytes = frame;
            debug_assert!(frame.len() <= into.limit && out.limit == into.limit);
            if into.queue.send(frame).await.is_err() {
                // The receiver was dropped: as with a stopped stream, the rest goes nowhere.
                while out.queue.recv().await.is_some() {}
                return;
            }
        }
        // The end of a stream travels on the cable too.
        if up.wait_for(|up| *up).await.is_ok() {
            into.finish();
        }
    };
    tokio::select! {
        () = work => {}
        _ = ends[0].ended() => {}
        _ = ends[1].ended() => {}
    }
}

/// Tells the peer how this side ended.
async fn pass_on_the_end(ours: Arc<Shared>, peers: Arc<Shared>) {
    match ours.ended().await {
        Ended::Here(close) => peers.end(Ended::Peer(close)),
        Ended::Broken(detail) | Ended::Lost(detail) => peers.end(Ended::Lost(detail)),
        Ended::Peer(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::link::{Close, CloseCode};

    fn run<F: Future>(work: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    fn frame(n: u32) -> Bytes {
        Bytes::copy_from_slice(&n.to_le_bytes())
    }

    /// Sends `count` frames over each of `lanes` lanes and returns (lane, number) by arrival.
    fn arrivals(seed: u64, lanes: usize, count: u32) -> Vec<(usize, u32)> {
        run(async {
            let (source, target, _cable) =
                pair(Options { lanes, seed, max_turns: 9, ..Options::default() });
            let order = Arc::new(std::sync::Mutex::new(Vec::new()));
            let mut tasks = Vec::new();
            for (index, mut lane) in target.lanes.into_iter().enumerate() {
                let order = Arc::clone(&order);
                tasks.push(tokio::spawn(async move {
                    while let Some(f) = lane.recv().await.unwrap() {
                        let n = u32::from_le_bytes(f[..].try_into().unwrap());
                        order.lock().unwrap().push((index, n));
                    }
                }));
            }
            for lane in source.lanes {
                tokio::spawn(async move {
                    for n in 0..count {
                        lane.send(frame(n)).await.unwrap();
                    }
                });
            }
            for task in tasks {
                task.await.unwrap();
            }
            let order = order.lock().unwrap().clone();
            order
        })
    }

    #[test]
    fn lanes_overtake_each_other_and_never_themselves() {
        let order = arrivals(7, 3, 100);
        for lane in 0..3 {
            let one: Vec<u32> = order.iter().filter(|a| a.0 == lane).map(|a| a.1).collect();
            assert_eq!(one, (0..100).collect::<Vec<_>>());
        }
        // Some frame of one lane arrived before a frame of another lane with a lower number.
        assert!(order.windows(2).any(|w| w[0].0 != w[1].0 && w[0].1 > w[1].1), "{order:?}");
        assert_eq!(order, arrivals(7, 3, 100), "same seed, same order");
        assert_ne!(order, arrivals(8, 3, 100));
    }

    #[test]
    fn a_full_queue_holds_the_sender_back() {
        run(async {
            let (source, mut target, _cable) = pair(Options::default());
            let mut sent = 0u32;
            // Room: both queues, and one frame in the courier's hands.
            while tokio::time::timeout(std::time::Duration::from_millis(50), async {
                source.lanes[0].send(frame(sent)).await
            })
            .await
            .is_ok()
            {
                sent += 1;
            }
            let depth = u32::try_from(LinkLimits::default().bulk.depth).unwrap();
            assert!((2 * depth..=2 * depth + 1).contains(&sent), "{sent}");
            assert_eq!(target.lanes[0].recv().await.unwrap(), Some(frame(0)));
            source.lanes[0].send(frame(sent)).await.unwrap();
        });
    }

    #[test]
    fn a_cut_loses_nothing_and_a_severed_cable_ends_both() {
        run(async {
            let (source, mut target, cable) = pair(Options::default());
            cable.cut();
            source.control.sender.send(frame(1)).await.unwrap();
            tokio::select! {
                biased;
                got = target.control.receiver.recv() => panic!("{got:?} came through a cut"),
                () = async { for _ in 0..50 { tokio::task::yield_now().await } } => {}
            }
            cable.heal();
            assert_eq!(target.control.receiver.recv().await.unwrap(), Some(frame(1)));
            cable.sever();
            assert!(matches!(target.control.receiver.recv().await, Err(Ended::Lost(_))));
            assert!(matches!(target.urgent.recv().await, Err(Ended::Lost(_))));
            assert!(matches!(source.handle.ended().await, Ended::Lost(_)));
        });
    }

    #[test]
    fn the_peer_hears_code_and_reason() {
        run(async {
            let (source, mut target, _cable) = pair(Options::default());
            target.handle.close(Close::new(CloseCode::Refused, "no room:\n 4 GiB short"));
            let Ended::Peer(close) = source.handle.ended().await else { panic!() };
            assert_eq!((close.code, close.reason.as_str()), (CloseCode::Refused, "no room:  4 GiB short"));
            let sent = source.control.sender.send(frame(1)).await;
            assert!(sent.unwrap_err().to_string().contains("4 GiB short"));
            assert!(matches!(target.control.receiver.recv().await, Err(Ended::Here(_))));
        });
    }

    #[test]
    fn a_dropped_link_closes_and_a_dropped_sender_finishes() {
        run(async {
            let (source, mut target, _cable) = pair(Options::default());
            let Link { control, urgent, lanes, handle } = source;
            lanes[0].send(frame(5)).await.unwrap();
            drop(lanes);
            assert_eq!(target.lanes[0].recv().await.unwrap(), Some(frame(5)));
            assert_eq!(target.lanes[0].recv().await.unwrap(), None);
            assert_eq!(handle.has_ended(), None);
            drop((control, urgent, handle));
            assert!(matches!(target.handle.ended().await, Ended::Peer(_)));
        });
    }

    #[test]
    fn frames_above_the_limit_stay_here() {
        run(async {
            let (source, _target, _cable) = pair(Options::default());
            let urgent = &source.urgent;
            assert!(urgent.send(Bytes::from(vec![0; urgent.limit() + 1])).await.is_err());
            assert!(urgent.send(Bytes::new()).await.is_err());
            urgent.send(Bytes::from(vec![0; urgent.limit()])).await.unwrap();
        });
    }
}
