//! The threads of a link: one for each connection, with a runtime of its own.

use std::{future::Future, sync::Arc};

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::oneshot;

use super::{
    error::ConnectError,
    serve::{say_goodbye, serve},
};
use crate::transport::link::{Close, CloseCode, Ended, Incoming, Outgoing, Shared};

/// A connection with its streams, ready to be served.
pub(super) struct Made {
    pub(super) endpoint: Endpoint,
    pub(super) connection: Connection,
    pub(super) outs: Vec<(Outgoing, SendStream)>,
    pub(super) ins: Vec<(Incoming, RecvStream)>,
}

/// What a thread says when its connection is made, or cannot be.
pub(super) type Ready = oneshot::Sender<Result<(), ConnectError>>;

/// Starts a thread with a runtime of its own for one connection.
pub(super) fn on_thread<F, W>(
    lane: Option<usize>,
    work: F,
) -> Result<oneshot::Receiver<Result<(), ConnectError>>, ConnectError>
where
    F: FnOnce(Ready) -> W + Send + 'static,
    W: Future<Output = ()>,
{
    let (ready, is_ready) = oneshot::channel();
    let name = lane.map_or_else(|| "link-control".to_owned(), |lane| format!("link-bulk-{lane}"));
    let here = |e| ConnectError::here("start a thread for a connection", &e);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(here)?;
    std::thread::Builder::new()
        .name(name)
        .spawn(move || runtime.block_on(work(ready)))
        .map_err(here)?;
    Ok(is_ready)
}

/// Makes a connection, but gives up when its link has ended.
pub(super) async fn unless_ended(
    made: impl Future<Output = Result<Made, ConnectError>>,
    link: &Shared,
) -> Result<Made, ConnectError> {
    tokio::select! {
        made = made => made,
        how = link.ended() => Err(ConnectError::here("make a connection", &how)),
    }
}

/// Reports that a connection is made, and serves it to its end.
pub(super) async fn run(
    made: Result<Made, ConnectError>,
    ready: Ready,
    lane: Option<usize>,
    link: Arc<Shared>,
) {
    match made {
        Err(e) => {
            // Nobody waits any more if another connection failed first.
            let _nobody = ready.send(Err(e));
        }
        Ok(Made { endpoint, connection, outs, ins }) => {
            if ready.send(Ok(())).is_err() {
                link.end(Ended::Here(Close::new(
                    CloseCode::Cancelled,
                    "given up while connecting",
                )));
            }
            serve(connection, lane, link, outs, ins).await;
            say_goodbye(&endpoint).await;
        }
    }
}

/// Waits until all connections are made; if one is not, ends the others.
pub(super) async fn all_ready(
    started: Vec<oneshot::Receiver<Result<(), ConnectError>>>,
    link: &Shared,
) -> Result<(), ConnectError> {
    for ready in started {
        let result = ready
            .await
            .unwrap_or_else(|_| Err(ConnectError::here("make a connection", "its thread died")));
        if let Err(e) = result {
            let close = Close::new(CloseCode::Failed, "another connection of the link failed");
            link.end(Ended::Here(close));
            return Err(e);
        }
    }
    Ok(())
}
