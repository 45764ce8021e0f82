//! The socket that QUIC sends through: segmentation offload within UDP's limits, and the limiter.

use std::{
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use tokio::time::{Sleep, sleep};

use super::limiter::Limiter;

/// Most bytes in a UDP datagram, and so in one segmented send.
const UDP_LIMIT: u16 = 65_507;

/// What of the limiter a socket has to obey.
#[derive(Debug, Clone)]
pub(super) enum Budget {
    /// No limit.
    Free,
    /// Waits for the budget.
    Bulk(Arc<Limiter>),
    /// Is charged, but never waits.
    Urgent(Arc<Limiter>),
}

/// A UDP socket with a budget and at most so many segments in one send.
#[derive(Debug)]
pub(super) struct Paced {
    inner: Arc<dyn AsyncUdpSocket>,
    budget: Budget,
    payload: u16,
}

impl Paced {
    /// `payload` is the largest UDP payload that the connection may come to use.
    pub(super) fn new(inner: Arc<dyn AsyncUdpSocket>, budget: Budget, payload: u16) -> Self {
        Self { inner, budget, payload: payload.max(1) }
    }
}

impl AsyncUdpSocket for Paced {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let limiter = match &self.budget {
            Budget::Bulk(limiter) => Some(Arc::clone(limiter)),
            Budget::Free | Budget::Urgent(_) => None,
        };
        let inner = Arc::clone(&self.inner).create_io_poller();
        Box::pin(PacedPoller { inner, limiter, sleep: None })
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.inner.try_send(transmit)?;
        if let Budget::Bulk(limiter) | Budget::Urgent(limiter) = &self.budget {
            limiter.charge(transmit.contents.len());
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let fit = usize::from(UDP_LIMIT / self.payload).max(1);
        let budget = match &self.budget {
            Budget::Bulk(limiter) => limiter.segments(self.payload),
            Budget::Free | Budget::Urgent(_) => usize::MAX,
        };
        self.inner.max_transmit_segments().min(fit).min(budget)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// Waits for the budget, then for the socket. QUIC polls it before every send.
struct PacedPoller {
    inner: Pin<Box<dyn UdpPoller>>,
    limiter: Option<Arc<Limiter>>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl UdpPoller for PacedPoller {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(limiter) = &this.limiter {
            while let Some(wait) = limiter.wait() {
                let timer = this.sleep.insert(Box::pin(sleep(wait)));
                ready!(timer.as_mut().poll(cx));
            }
            this.sleep = None;
        }
        this.inner.as_mut().poll_writable(cx)
    }
}

impl fmt::Debug for PacedPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PacedPoller").finish_non_exhaustive()
    }
}
