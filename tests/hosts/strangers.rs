//! Hosts that have not joined yet: few, for a short time, and only with an invitation.

use std::time::Duration;

use migrate_engine::transport::identity::Invitation;
use migrate_engine::transport::quic::{Settings, dial_to_join};

use crate::crafted::{check, site_of};
use crate::site::{Host, join};
use crate::support::eventually;

#[test]
fn an_invitation_is_good_for_one_host_and_a_while() {
    let hosts = site_of(&["alpha"]);
    let invited = hosts[0].home.done(&["host", "invite"]);
    let line = invited["invitation"].as_str().unwrap();
    let (beta, gamma) = (Host::new("beta"), Host::new("gamma"));
    beta.home.done(&["host", "join", line, "--name", "beta"]);
    let again = gamma.home.json(&["host", "join", line, "--name", "gamma"]);
    again.refused("host-refused", &["is not known here, or was used already"]);
    // Nor does one with another's name.
    let invited = hosts[0].home.done(&["host", "invite"]);
    let line = invited["invitation"].as_str().unwrap();
    let taken = gamma.home.json(&["host", "join", line, "--name", "beta"]);
    taken.refused("name-taken", &["'beta' is in the site already"]);
    gamma.home.done(&["host", "join", line, "--name", "gamma"]);
    // One that has joined does not join another site by mistake.
    let other = site_of(&["omega"]);
    let invited = other[0].home.done(&["host", "invite"]);
    let line = invited["invitation"].as_str().unwrap();
    let refused = gamma.home.json(&["host", "join", line]);
    refused.refused("file-exists", &["has an identity already"]);

    let short = hosts[0].home.done(&["host", "invite", "--valid", "1s"]);
    let line = short["invitation"].as_str().unwrap();
    let delta = Host::new("delta");
    eventually("the invitation runs out", || {
        let over: Invitation = line.parse().unwrap();
        over.check_time(crate::crafted::now()).is_err().then_some(())
    });
    let late = delta.home.json(&["host", "join", line, "--name", "delta"]);
    assert_eq!(late.code, Some(2), "{late:?}");
    assert!(late.stdout.contains("ran out on"), "{late:?}");
}

#[test]
fn a_crowd_of_strangers_is_sent_away_and_hosts_are_served() {
    let hosts = site_of(&["alpha", "beta"]);
    let invited = hosts[0].home.done(&["host", "invite"]);
    let invitation: Invitation = invited["invitation"].as_str().unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let address = invitation.address().parse().unwrap();
    let settings = Settings::default();
    runtime.block_on(async {
        let mut silent = Vec::new();
        for _ in 0..24 {
            silent.push(dial_to_join(address, invitation.authority(), &settings).await.unwrap());
        }
        // Those beyond the first few are told why, and at once.
        let mut told = 0;
        for session in &mut silent {
            let wait = tokio::time::timeout(Duration::from_secs(1), session.handle.ended());
            let how = wait.await.map(|how| how.to_string()).unwrap_or_default();
            told += usize::from(how.contains("too many at a time"));
        }
        assert!((8..24).contains(&told), "{told} of 24 were sent away");
        let served = tokio::task::spawn_blocking(move || {
            let (_, checked) = check(&hosts[1], "alpha");
            assert!(checked["error"].is_null(), "{checked}");
            hosts
        });
        let hosts = served.await.unwrap();
        // The others are sent away when they have said nothing for a while.
        for session in &mut silent {
            session.handle.ended().await;
        }
        tokio::task::spawn_blocking(move || {
            let gamma = Host::new("gamma");
            join(&hosts[0], &gamma);
            drop(hosts);
        })
        .await
        .unwrap();
    });
}
