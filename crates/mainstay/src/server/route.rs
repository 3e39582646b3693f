//! A HELLO that asks for a session, in a cluster: it is here, at another node, in the engine, or lost.
//!
//! [`Step`] is the machine's word, and this module does it. The client waits within the opening deadline; after that it is
//! asked to come back (4414).
//!
//! Source: `docs/CLUSTER.md`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::attach::{Bound, Opened, refuse_with, settle};
use super::core::{CoreRef, Cores, Shared};
use bytes::Bytes;
use mainstay_proto::admission::Source;
use mainstay_proto::cluster::peer::{Head, PeerAnswer};
use mainstay_proto::cluster::{PeerKey, PeerOutcome, Step, lookup};
use mainstay_proto::session::message::{Account, Hello, Resume, SessionId};
use mainstay_proto::session::server::ServerConfig;
use mainstay_proto::session::{
    Adopted, Answer, Control, NodeId, Presenter, Record, RefuseReason, Resumed, ServerSession, Sessions,
};
use mainstay_proto::timeline::Attach;
use mainstay_proto::ws::CloseCode;

use super::stats::Counters;
use crate::clock::now;
use crate::cluster::relay::Beginning;
use crate::cluster::{Figures, Node, Seeking};
use crate::transport::Transport;

/// A client on its way to its session.
struct Arrival<'a> {
    node: &'a Arc<Node>,
    shared: Arc<Shared>,
    cores: Cores,
    opened: Opened,
    hello: &'a Hello,
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
    let deadline = opened.deadline;
    let arrival = Arrival { node, shared: Arc::clone(&cores.shared), cores, opened, hello };
    let search = arrival.search(resume, raw);
    let next = tokio::time::timeout_at(deadline, search.run(node)).await;
    match next.unwrap_or(Next::Step(Step::Wait)) {
        Next::Relay(owner) => {
            arrival.relay(*owner);
            None
        }
        Next::Lost(account) => arrival.open(account).await,
        Next::Refused(answer) => arrival.refuse(&answer).await,
        Next::Step(Step::Here) => arrival.resume_here().await,
        Next::Step(Step::Adopt { session, claim, record }) => arrival.adopt((session, claim), &record).await,
        Next::Step(Step::Unknown) => arrival.open(None).await,
        // No other step than `Wait` reaches a HELLO that did not come through the peer listener.
        Next::Step(_) => {
            Figures::add(&node.figures.waited, 1);
            arrival.refuse(&lookup::wait()).await
        }
    }
}

/// The search for a session, by what its client has sent.
struct Search {
    seeking: Seeking,
    /// What this node states of the client to the node that it asks.
    head: Head,
    /// The client's bytes from the first byte of HELLO on.
    raw: Bytes,
}

/// What ends a search.
enum Next {
    Step(Step),
    /// The owner has attached the client.
    Relay(Box<Owner>),
    /// The owner has no such session any more.
    Lost(Option<Account>),
    /// The owner refuses.
    Refused(Control),
}

/// The owner of the session, and the connection to it.
struct Owner {
    node: NodeId,
    /// Its peer listener.
    listener: (SocketAddr, PeerKey),
    connection: Transport,
    /// What it sent behind its answer.
    rest: Bytes,
}

impl Search {
    /// Searches the session, and asks other nodes for it.
    ///
    /// # Cancel safety
    /// It may be dropped at any time: what was claimed meanwhile can be claimed again.
    async fn run(mut self, node: &Node) -> Next {
        loop {
            let address = match node.step(&mut self.seeking).await {
                Step::Ask { node: owner, address, key, pause } => {
                    (self.head.to, self.head.key) = (owner, key);
                    // A sleep of no time would last a millisecond.
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                    address
                }
                step => return Next::Step(step),
            };
            let outcome = match node.speech.ask(address, &self.head, &self.raw).await {
                Ok(asked) => match asked.answer {
                    PeerAnswer::Released => PeerOutcome::Released,
                    PeerAnswer::OtherNode => PeerOutcome::OtherNode,
                    PeerAnswer::Lost(account) => return Next::Lost(account),
                    PeerAnswer::Refused(answer) => return Next::Refused(answer),
                    PeerAnswer::Accepted => {
                        let (node, listener) = (self.head.to, (address, self.head.key));
                        let (connection, rest) = (asked.owner, asked.rest);
                        return Next::Relay(Box::new(Owner { node, listener, connection, rest }));
                    }
                },
                Err(outcome) => {
                    Figures::add(&node.figures.unanswered, 1);
                    outcome
                }
            };
            node.handle_peer(&mut self.seeking, outcome);
        }
    }
}

impl Arrival<'_> {
    fn who(&self) -> Presenter<'_> {
        Presenter { principal: &self.cores.info.principal, path: &self.opened.options.path }
    }

    fn search(&self, resume: &Resume, raw: Bytes) -> Search {
        let is_here = self.shared.registry().knows(self.who(), &resume.token);
        let seeking = self.node.begin(&resume.token, self.who().token_name(&resume.token), is_here);
        let (info, options) = (&self.cores.info, &self.opened.options);
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let head = Head {
            from: self.node.id,
            to: self.node.id,
            key: PeerKey([0; 16]),
            path: options.path.to_string(),
            principal: Bytes::copy_from_slice(&info.principal),
            subprotocol: info.subprotocol.as_deref().map(str::to_owned),
            deflate: options.deflate,
            client: info.address.unwrap_or(nowhere),
            expiry: self.opened.expiry,
        };
        Search { seeking, head, raw }
    }

    /// Forwards the client to the owner from now on.
    fn relay(mut self, owner: Owner) {
        self.opened.take_place(&self.cores);
        let Owner { node, listener, connection: owner, rest: to_client } = owner;
        let (client, permit) = self.opened.wire.into_transport();
        let beginning = Beginning { client, permit, node, owner, to_client };
        self.node.relay(beginning, listener, self.shared.tracker.token());
    }

    async fn resume_here(mut self) -> Option<Bound> {
        let mut leaving = None;
        let answer = {
            let Opened { connection, options, .. } = &self.opened;
            let who = Presenter { principal: &self.cores.info.principal.clone(), path: &options.path };
            self.shared.answer(&mut self.cores, options.group.as_ref(), |registry, cores| {
                match registry.resume(now(), *connection, who, self.hello, cores) {
                    Resumed::Answer(answer) => answer,
                    Resumed::Lost(account) => {
                        registry.open(now(), *connection, who, self.hello, account, cores)
                    }
                    Resumed::Released => moving(),
                    Resumed::Leaving(session) => {
                        leaving = Some(session);
                        moving()
                    }
                }
            })
        };
        if let Some(session) = leaving {
            session.leave();
        }
        settle(&self.cores, self.opened, answer).await
    }

    /// Opens a new session, with the account of the one that the client asked for.
    async fn open(mut self, account: Option<Account>) -> Option<Bound> {
        let answer = {
            let Opened { connection, options, .. } = &self.opened;
            let who = Presenter { principal: &self.cores.info.principal.clone(), path: &options.path };
            self.shared.answer(&mut self.cores, options.group.as_ref(), |registry, cores| {
                registry.open(now(), *connection, who, self.hello, account, cores)
            })
        };
        settle(&self.cores, self.opened, answer).await
    }

    /// Sends a REFUSE, this node's or the owner's, and closes with its code.
    async fn refuse(self, answer: &Control) -> Option<Bound> {
        let code = match answer {
            Control::Refuse { code, .. } => u16::try_from(*code).ok().and_then(CloseCode::new),
            _ => None,
        };
        let code = code.unwrap_or(CloseCode::UPSTREAM_UNAVAILABLE);
        tracing::debug!(%code, "HELLO refused");
        Counters::add(&self.shared.stats.attach_refused, 1);
        refuse_with(self.opened.wire, answer, code).await;
        None
    }

    /// Continues what this node has claimed: a session, or an account.
    async fn adopt(mut self, (session, claim): (SessionId, u64), record: &Record) -> Option<Bound> {
        let mut adopting = Adopting { cores: self.cores, created: None };
        let adopted = self.shared.registry().adopt(now(), record, claim, &mut adopting);
        let created = adopting.created;
        self.cores = adopting.cores;
        self.node.adopted(session);
        match adopted {
            Ok(Adopted::Session { evicted, .. }) => {
                Figures::add(&self.node.figures.claimed, 1);
                evicted.into_iter().for_each(|evicted| evicted.notify());
            }
            Ok(Adopted::Account) => Figures::add(&self.node.figures.claimed_accounts, 1),
            Err(error) => {
                Figures::add(&self.node.figures.unreadable, 1);
                tracing::error!(%error, "a claimed session cannot be read: its client gets a new one, with a gap");
                return self.open(None).await;
            }
        }
        let Some(core) = created else { return self.resume_here().await };
        self.opened.options.apply(&core);
        self.begin(core).await
    }

    /// Attaches the client to a session that was adopted for it. The session needs its handler, even if the client has to
    /// come once more.
    async fn begin(mut self, core: CoreRef) -> Option<Bound> {
        let connection = self.opened.connection;
        let resumed = {
            let who =
                Presenter { principal: &self.cores.info.principal.clone(), path: &self.opened.options.path };
            self.shared.registry_for_hello().resume(now(), connection, who, self.hello, &mut self.cores)
        };
        match resumed {
            Resumed::Answer(Answer::Attached { .. }) => {
                self.opened.take_place(&self.cores);
                Counters::add(&self.shared.stats.attached_resumed, 1);
                Counters::add(&self.shared.stats.connections, 1);
                core.note_attached(self.cores.info.address, Attach::Resumed);
                core.begin_epoch(self.opened.options.authenticate);
                core.set_expiry(connection, self.opened.expiry);
                Some((connection, core, Some(self.opened.wire)))
            }
            Resumed::Lost(account) => {
                // Another copy of this client contradicts what the session knows. It would wait for a client in vain.
                self.shared.end_now(&core);
                self.open(account).await
            }
            Resumed::Answer(Answer::Refused { refuse: answer, .. }) => {
                self.refuse(&answer).await;
                Some((connection, core, None))
            }
            Resumed::Released | Resumed::Leaving(_) => {
                self.refuse(&RefuseReason::Moving.refuse()).await;
                Some((connection, core, None))
            }
        }
    }
}

fn moving() -> Answer<CoreRef> {
    Answer::Refused { refuse: RefuseReason::Moving.refuse(), why: RefuseReason::Moving }
}

/// The sessions of this server as its registry sees them while it adopts one; notes the session that it creates.
struct Adopting {
    cores: Cores,
    created: Option<CoreRef>,
}

impl Sessions for Adopting {
    type Handle = CoreRef;

    fn with<R>(&mut self, handle: &CoreRef, f: impl FnOnce(&mut ServerSession) -> R) -> R {
        self.cores.with(handle, f)
    }

    fn create(&mut self, session: ServerSession) -> CoreRef {
        let core = self.cores.create(session);
        self.created = Some(Arc::clone(&core));
        core
    }

    fn config(&mut self) -> Option<Arc<ServerConfig>> {
        self.cores.config()
    }

    fn source(&mut self, handle: &CoreRef) -> Option<Source> {
        self.cores.source(handle)
    }
}
