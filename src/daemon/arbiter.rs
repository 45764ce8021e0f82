//! The arbiter, as the daemon sees it: both ends of a move must have the same one, and a guest
//! that leaves has an agent to ask it through, for as long as its move goes on.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::moves::record::Open;
use super::{Daemon, unexpected};
use crate::api::client::GuestClient;
use crate::api::fds::hand_over_fd;
use crate::api::moving::ArbiterPass;
use crate::api::{ErrorCode, Failure};
use crate::arbiter::{agent, silent, within};

/// How long the arbiter may take to say who it is.
const LOOK: Duration = Duration::from_secs(2);
/// Time between the death of an agent and the next one.
const AGAIN: Duration = Duration::from_millis(200);

/// An agent that runs. It ends by itself when the guest's process lets go of it, whatever happens
/// here.
#[derive(Debug)]
pub(super) struct Agent(tokio::process::Child);

impl Agent {
    /// Nobody asks it anything.
    pub(super) fn end(mut self) {
        let _ = self.0.start_kill();
    }
}

impl Daemon {
    /// Which arbiter this host has; `None` if it has none.
    ///
    /// # Errors
    /// `arbiter`: it does not answer.
    pub(super) async fn arbiter_id(&self) -> Result<Option<Uuid>, Failure> {
        let Some(arbiter) = &self.arbiter else { return Ok(None) };
        let asked = within(LOOK, arbiter.identity()).await;
        Ok(Some(asked.map_err(|why| silent(&why))?))
    }

    /// Whether the host `other` has the arbiter that this one has.
    ///
    /// # Errors
    /// `arbiter`, with what each has.
    pub(super) async fn same_arbiter(
        &self,
        other: &str,
        theirs: Option<Uuid>,
    ) -> Result<(), Failure> {
        let ours = self.arbiter_id().await?;
        if ours == theirs {
            return Ok(());
        }
        let here = self.host_ref().name;
        let line = self.config.arbiter.as_ref().map(ToString::to_string).unwrap_or_default();
        let what = match (ours, theirs) {
            (Some(_), None) => {
                format!("host {here} has an arbiter ({line}), host {other} has none")
            }
            (None, _) => format!("host {other} has an arbiter, host {here} has none"),
            (Some(_), Some(_)) => {
                format!("hosts {here} ({line}) and {other} have different arbiters")
            }
        };
        let remedy = "give both hosts the same line 'arbiter' in host.toml, then restart their \
                      daemons: migrate help arbiter";
        Err(Failure::new(ErrorCode::Arbiter, what, remedy))
    }

    /// Starts an agent for a guest and hands its socket to the guest's process; `None` if this
    /// host has no arbiter.
    ///
    /// # Errors
    /// It cannot be started, or the process does not take the socket.
    pub(super) async fn pass_arbiter(
        &self,
        client: &GuestClient,
        guest: Uuid,
    ) -> Result<Option<(ArbiterPass, Agent)>, Failure> {
        if self.arbiter.is_none() {
            return Ok(None);
        }
        let failed = |e: std::io::Error| unexpected("the arbiter's agent", &e);
        let (command, ours) = agent::command(&self.dirs, guest).map_err(failed)?;
        let child = tokio::process::Command::from(command).spawn().map_err(failed)?;
        let fd_token = Uuid::new_v4().to_string();
        hand_over(client, fd_token.clone(), ours).await?;
        Ok(Some((ArbiterPass { fd_token }, Agent(child))))
    }

    /// Keeps a move away from here in agents: one that ends before the move does is replaced.
    /// `first` is the one that the process has, if we know of one.
    pub(super) async fn keep_agents(self: Arc<Self>, open: Arc<Open>, first: Option<Agent>) {
        let about = &open.about;
        let client = GuestClient::new(&about.guest, self.dirs.guest(&about.guest));
        let mut agent = first;
        while self.arbiter.is_some() && self.moves.goes_on(about.move_id) {
            if let Some(Agent(child)) = &mut agent {
                let _ = child.wait().await;
                agent = None;
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            match self.another_agent(&client, about.uuid).await {
                Ok(next) => agent = next,
                Err(failure) => {
                    tracing::warn!(MOVE = %about.move_id, GUEST = about.guest, %failure,
                        "the move has no agent of the arbiter");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    async fn another_agent(
        &self,
        client: &GuestClient,
        guest: Uuid,
    ) -> Result<Option<Agent>, Failure> {
        let Some((pass, agent)) = self.pass_arbiter(client, guest).await? else { return Ok(None) };
        client.move_arbiter(&pass).await.map_err(|e| client.failure(e))?;
        Ok(Some(agent))
    }
}

/// Nothing of the socket is left here then: its end is the agent's.
async fn hand_over(client: &GuestClient, token: String, ours: UnixStream) -> Result<(), Failure> {
    let socket = client.paths().fd();
    let hand = move || hand_over_fd(&socket, &token, ours.as_fd());
    let handed = tokio::task::spawn_blocking(hand).await;
    let handed = handed.map_err(|e| unexpected("the arbiter's agent", &e))?;
    handed.map_err(|e| unexpected("the guest's process does not take the arbiter's agent", &e))
}
