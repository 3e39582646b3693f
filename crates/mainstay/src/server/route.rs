//! A HELLO that asks for a session, in a cluster: it is here, at another node, in the engine, or lost.
//!
//! [`Lookup`] decides each step; this module does it. The opening may end before a claim is answered: then the client is asked
//! to come back, and the session that was claimed is adopted all the same, so that its client finds it here.
//!
//! Source: `docs/CLUSTER.md`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use mainstay_proto::cluster::peer::{Head, PeerAnswer};
use mainstay_proto::cluster::{Lookup, PeerKey, Step};
use mainstay_proto::session::message::{Account, Hello, Resume};
use mainstay_proto::session::registry::{Adopted, Resumed};
use mainstay_proto::session::{Answer, NodeId, Presenter, Record, RefuseReason};

use super::core::{CoreRef, Cores};
use super::open::{Bound, Opened, refuse, settle};
use super::owner::Owned;
use super::stats::Counters;
use crate::clock::now;
use crate::cluster::relay::Beginning;
use crate::cluster::{Figures, Node, entry};

/// A HELLO on its way to its session.
struct Arrival<'a> {
    node: &'a Arc<Node>,
    cores: Cores,
    hello: &'a Hello,
    /// The client's bytes from the first byte of HELLO on.
    raw: Bytes,
}

/// Attaches the client to its session, wherever that is. Returns a session that needs its handler here.
pub(super) async fn attach(
    node: &Arc<Node>,
    cores: Cores,
    opened: Opened,
    hello: &Hello,
    resume: &Resume,
    raw: Bytes,
) -> Option<Bound> {
    let principal = cores.info.principal.clone();
    let who = Presenter { principal: &principal, path: &opened.options.path.clone() };
    let is_here = cores.shared.registry().knows(who, &resume.token);
    let mut lookup = node.begin(&resume.token, who.token_name(&resume.token), is_here);
    let mut arrival = Arrival { node, cores, hello, raw };
    loop {
        let step = tokio::select! {
            biased;
            step = node.step(&mut lookup) => step,
            () = tokio::time::sleep_until(opened.deadline) => return arrival.come_back(opened, lookup).await,
        };
        match step {
            Step::Here => return arrival.resume_here(opened, who).await,
            Step::Unknown => return arrival.open(opened, who, None).await,
            Step::Adopt { claim, record } => return arrival.adopt(opened, who, claim, &record).await,
            Step::Wait { .. } => return arrival.wait(opened).await,
            Step::Ask { node: owner, address, key, pause } => {
                tokio::time::sleep(pause).await;
                let head = arrival.head(&opened, owner, key);
                match entry::ask(address, &head, &arrival.raw).await {
                    Err(outcome) => {
                        Figures::add(&node.figures.unanswered, 1);
                        node.answered(&mut lookup, outcome);
                    }
                    Ok(asked) => match asked.answer {
                        PeerAnswer::Accepted => {
                            arrival.relay(opened, asked.owner, asked.rest);
                            return None;
                        }
                        PeerAnswer::Lost(account) => return arrival.open(opened, who, account).await,
                        PeerAnswer::Refused(answer) => {
                            // Counted as the owner's; the reason is in the REFUSE.
                            return arrival.refuse(opened, &answer).await;
                        }
                        other => node.answered(&mut lookup, mainstay_proto::cluster::PeerOutcome::of(&other)),
                    },
                }
            }
            Step::Claiming => {}
        }
    }
}
