//! A process whose guest is still on another host.

use std::net::UdpSocket;
use std::process::ExitCode;
use std::time::Duration;

use super::{First, Frame, Guest, Life, Serve, unexpected, write_info};
use crate::api::{Failure, LaunchReply};
use crate::guest::machine::MakeMachine;
use crate::guest::moving::arrival::{self, Arrival, Landed};
use crate::guest::moving::departure::UnderWay;
use crate::guest::moving::landed::Landing;
use crate::guest::server::Server;

/// Everything is there but the guest.
pub(super) struct Coming<M: MakeMachine> {
    frame: Frame<M>,
    server: Server,
    under_way: UnderWay,
}

impl<M: MakeMachine> Frame<M> {
    /// Waits for the guest on `sockets`.
    pub(super) fn receive(
        mut self,
        sockets: Vec<UdpSocket>,
        serve: Serve,
    ) -> Result<(Life<M>, LaunchReply), Failure> {
        let Some(spec) = self.spec.receive.clone() else {
            return Err(unexpected("the guest", &"it was not said where it comes from"));
        };
        let addresses: Result<Vec<_>, _> = sockets.iter().map(UdpSocket::local_addr).collect();
        let addresses = addresses.map_err(|e| unexpected("the data sockets", &e))?;
        let landing = Landing {
            receiver: self.machines.receiver()?,
            disks: self.disk_set.clone(),
            saved: self.disks.clone(),
        };
        let under_way = arrival::begin(Arrival {
            spec,
            definition: self.spec.definition.clone(),
            sockets,
            landing,
            journal: self.journal.clone(),
            marks: self.marks(),
            inbox: self.inbox.clone(),
        })?;
        let server = serve.start(self.inbox.clone())?;
        let coming = Coming { frame: self, server, under_way };
        Ok((Life::Coming(Box::new(coming)), LaunchReply::Receiving { addresses }))
    }
}

impl<M: MakeMachine> Coming<M> {
    /// Until the guest has come, and then until its end; or until it is clear that it will not.
    pub(super) fn wait(self) -> ExitCode {
        let Self { mut frame, server, under_way } = self;
        let facts = frame.facts(None);
        let machine = match arrival::attend(&mut frame.sources, &facts, &under_way) {
            Landed::Running(machine) => First::Running(machine),
            Landed::Paused(machine) => First::Paused(machine),
            Landed::Held(machine) => First::Held(machine),
            Landed::NotTaken(why) => {
                tracing::info!(MOVE = %under_way.move_id, why, "the guest does not come");
                // It has the last words, and the sockets and the journal until then.
                let _ = under_way.thread.join();
                drop(frame);
                server.end();
                return ExitCode::SUCCESS;
            }
        };
        // NEXT is let go: the guest has arrived, and may move on.
        if let Err(error) = frame.disk_set.drop_next() {
            tracing::error!(%error, "a lock of a disk cannot be let go: no move will begin");
        }
        let facts = frame.facts(Some(Duration::ZERO));
        match frame.owner(machine, facts.clone(), Some(under_way)) {
            Ok((owner, dir, spec)) => {
                if let Err(error) = write_info(&dir, &owner.info()) {
                    tracing::error!(%error, "the guest's facts cannot be written");
                }
                Guest { owner, server, dir, facts, spec }.rule()
            }
            Err(failure) => {
                tracing::error!(%failure, "the guest came, but cannot be ruled");
                server.end();
                ExitCode::FAILURE
            }
        }
    }
}
