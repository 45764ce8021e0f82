//! One connection, from the moment it is made to its end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{
    error::ended,
    settings::{FIRST_WINDOW, varint},
    stream::{Flow, carry_in, carry_out},
};
use crate::transport::{
    link::{Close, CloseCode, Ended, Incoming, LaneStats, Outgoing, Shared},
    meter::{Meter, Totals, window},
};

/// How often counters are read.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two looks at the windows.
const TICKS_PER_WINDOW: u32 = 10;
/// How long an ended connection may take to tell its peer.
const GOODBYE: Duration = Duration::from_millis(500);

/// Serves the streams of `connection` until it or its link ends, and makes each end the other.
///
/// `lane` is the bulk lane that it carries, `None` for control.
pub(super) async fn serve(
    connection: Connection,
    lane: Option<usize>,
    link: Arc<Shared>,
    outs: Vec<(Outgoing, SendStream)>,
    ins: Vec<(Incoming, RecvStream)>,
) {
    let flow = Arc::new(Flow::default());
    // Dropping the set at the end stops every task in it.
    let mut tasks = tokio::task::JoinSet::new();
    for (out, stream) in outs {
        let flow = Arc::clone(&flow);
        tasks.spawn(async move { carry_out(out, stream, &flow).await });
    }
    for (into, stream) in ins {
        let (flow, link) = (Arc::clone(&flow), Arc::clone(&link));
        tasks.spawn(async move { carry_in(into, stream, &flow, &link).await });
    }
    let mut watch = Watch::new(connection.clone(), flow);
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let how = loop {
        tokio::select! {
            error = connection.closed() => {
                // What arrived before the close is still given out.
                drain(&mut tasks).await;
                link.record(lane, watch.tick());
                link.end(ended(error));
                break link.ended().await;
            }
            how = link.ended() => {
                link.record(lane, watch.tick());
                break how;
            }
            _ = ticks.tick() => link.record(lane, watch.tick()),
        }
    };
    let close = match how {
        Ended::Here(close) => close,
        Ended::Peer(_) => Close::new(CloseCode::Done, ""),
        Ended::Broken(detail) => Close::new(CloseCode::Protocol, detail),
        Ended::Lost(detail) => Close::new(CloseCode::Failed, detail),
    };
    connection.close(varint(close.code.to_u32().into()), close.reason.as_bytes());
}

/// Lets the tasks of a dead connection come to their end: they have nothing to wait for but a
/// full queue, and for that not longer than a tick.
async fn drain(tasks: &mut tokio::task::JoinSet<()>) {
    let _slow_reader = timeout(TICK, async { while tasks.join_next().await.is_some() {} }).await;
}

/// Waits until the peers of an endpoint have been told of the end.
pub(super) async fn say_goodbye(endpoint: &Endpoint) {
    let _peer_is_gone = timeout(GOODBYE, endpoint.wait_idle()).await;
}

/// Reads counters, and lets windows follow.
struct Watch {
    connection: Connection,
    flow: Arc<Flow>,
    start: Instant,
    sent: Meter,
    received: Meter,
    /// Rates between two looks at the windows.
    sent_slowly: Meter,
    received_slowly: Meter,
    send_window: u64,
    receive_window: u64,
    ticks: u32,
    heard: (u64, Instant),
}

impl Watch {
    fn new(connection: Connection, flow: Arc<Flow>) -> Self {
        let now = Instant::now();
        Self {
            connection,
            flow,
            start: now,
            sent: Meter::default(),
            received: Meter::default(),
            sent_slowly: Meter::default(),
            received_slowly: Meter::default(),
            send_window: FIRST_WINDOW,
            receive_window: FIRST_WINDOW,
            ticks: 0,
            heard: (0, now),
        }
    }

    fn tick(&mut self) -> LaneStats {
        let (stats, now) = (self.connection.stats(), Instant::now());
        let (frame_bytes, busy) = self.flow.totals();
        let at = now.saturating_duration_since(self.start);
        let arrived = stats.udp_tx.bytes.saturating_sub(stats.path.lost_bytes);
        let sent = Totals { at, delivered: arrived, busy };
        let received = Totals { at, delivered: stats.udp_rx.bytes, busy: Duration::ZERO };
        self.sent.sample(sent);
        self.received.sample(received);
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(TICKS_PER_WINDOW) {
            self.sent_slowly.sample(sent);
            self.received_slowly.sample(received);
            self.follow(stats.path.rtt);
        }
        if stats.udp_rx.datagrams != self.heard.0 {
            self.heard = (stats.udp_rx.datagrams, now);
        }
        LaneStats {
            rtt: stats.path.rtt,
            sent_bytes: stats.udp_tx.bytes,
            received_bytes: stats.udp_rx.bytes,
            sent_packets: stats.path.sent_packets,
            lost_packets: stats.path.lost_packets,
            lost_bytes: stats.path.lost_bytes,
            congestion_window: stats.path.cwnd,
            mtu: stats.path.current_mtu,
            frame_bytes,
            busy,
            bandwidth: self.sent.bandwidth(),
            silent: now.saturating_duration_since(self.heard.1),
        }
    }

    fn follow(&mut self, rtt: Duration) {
        if let Some(new) = window(self.sent_slowly.rate(), rtt, self.send_window) {
            self.send_window = new;
            self.connection.set_send_window(new);
        }
        if let Some(new) = window(self.received_slowly.rate(), rtt, self.receive_window) {
            self.receive_window = new;
            self.connection.set_receive_window(varint(new));
        }
    }
}
