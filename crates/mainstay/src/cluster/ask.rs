//! What concerns all nodes of a cluster, for an application or its operator: questions that the other nodes answer now, and
//! notes that nodes read which cannot be asked, or start later.
//!
//! Source: `docs/CLUSTER.md`.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use mainstay_proto::ConfigError;
use mainstay_proto::cluster::peer::{BLOCK_TIME, MAX_BODY, Question, Reply};
use mainstay_proto::cluster::request::MAX_NOTE;
use mainstay_proto::cluster::{Note, Other};
use mainstay_proto::session::NodeId;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::answers::{Answers, NoAnswer, NodeAnswer, NoteOutcome};
use super::{Figures, Node};
use crate::Server;

/// Questions of other nodes that are answered at one time. Further ones wait for their turn.
const ANSWERED_AT_ONCE: usize = 4;

/// The longest [question](Server::ask_nodes) and the longest answer, in bytes.
pub const LONGEST_QUESTION: usize = MAX_BODY;

impl Server {
    /// Asks each other node of the cluster whose id `wanted` accepts, all at once, and returns what they answered within 1 s.
    /// The nodes must [answer questions](Self::answer_nodes). Without a cluster there are no answers.
    ///
    /// A node whose process has ended is left out. Every other one that does not answer is in the answers, with the reason.
    ///
    /// ```no_run
    /// # async fn count(server: &mainstay::Server) -> Result<u64, mainstay::ConfigError> {
    /// server.answer_nodes(|server, _question| server.sessions().attached.to_string().into());
    /// let mut attached = server.sessions().attached;
    /// for node in server.ask_nodes("attached".into(), |_| true).await?.answers {
    ///     match node.answer {
    ///         Ok(count) => attached += String::from_utf8_lossy(&count).parse().unwrap_or(0),
    ///         Err(error) => eprintln!("node {} is not counted: {error}", node.node),
    ///     }
    /// }
    /// # Ok(attached) }
    /// ```
    ///
    /// # Errors
    /// The question is longer than [`LONGEST_QUESTION`].
    ///
    /// # Cancel safety
    /// Dropping the future drops the answers; nodes may have been asked.
    pub async fn ask_nodes(
        &self,
        question: Bytes,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Answers, ConfigError> {
        ConfigError::unless(question.len() <= LONGEST_QUESTION, "question", "at most 131008 bytes")?;
        match &self.shared.node {
            Some(node) => Ok(node.ask_others(question, wanted).await),
            None => Ok(Answers { answers: Vec::new(), is_complete: true }),
        }
    }

    /// Sets what answers the questions of other nodes. It is called on a thread for blocking work, for at most four questions
    /// at a time; an answer after 1 s comes too late, and one longer than [`LONGEST_QUESTION`] is not sent. A process that knows
    /// the key of this peer listener, which is in the engine, may ask. The first call counts. Without a cluster nothing asks.
    pub fn answer_nodes(&self, answer: impl Fn(&Self, Bytes) -> Bytes + Send + Sync + 'static) {
        let Some(node) = &self.shared.node else { return };
        let shared = Arc::downgrade(&self.shared);
        node.answering.set(move |question| Some(answer(&Self { shared: shared.upgrade()? }, question)));
    }

    /// Leaves a note for all other nodes, and for those that start later: each [reads](Self::watch_notes) it within one node
    /// heartbeat, about 3 s. The engine keeps it for [`ClusterConfig::notes_kept`](super::ClusterConfig::notes_kept); a later
    /// note with the same key replaces it. A note is one write at the engine, and one read of each node.
    ///
    /// # Errors
    /// The key is not 1 to 1,024 bytes, or the value is longer than 1,024 bytes.
    ///
    /// # Cancel safety
    /// The note is kept also if the future is dropped after its first poll.
    pub async fn keep_note(&self, key: Bytes, value: Bytes) -> Result<NoteOutcome, ConfigError> {
        ConfigError::unless((1..=MAX_NOTE).contains(&key.len()), "note.key", "1 to 1024 bytes")?;
        ConfigError::unless(value.len() <= MAX_NOTE, "note.value", "at most 1024 bytes")?;
        match &self.shared.node {
            Some(node) => Ok(node.keep_note(Note { key, value }).await),
            None => Ok(NoteOutcome::NotKept),
        }
    }

    /// Sets what takes the notes of all nodes: all that the engine has, when this node joins, whenever it reaches the engine
    /// again, and once there are new ones. The later of two notes with the same key stands last. The first call counts.
    pub fn watch_notes(&self, take: impl Fn(&Self, Vec<Note>) + Send + Sync + 'static) {
        let Some(node) = &self.shared.node else { return };
        let shared = Arc::downgrade(&self.shared);
        node.watch_notes(Box::new(move |notes| {
            if let Some(shared) = shared.upgrade() {
                take(&Self { shared }, notes);
            }
        }));
    }
}

type Answer = Box<dyn Fn(Bytes) -> Option<Bytes> + Send + Sync>;

/// What answers the questions of other nodes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Answering {
    answer: Arc<OnceLock<Answer>>,
    turns: Arc<Semaphore>,
}

impl Default for Answering {
    fn default() -> Self {
        Self { answer: Arc::default(), turns: Arc::new(Semaphore::new(ANSWERED_AT_ONCE)) }
    }
}

impl Answering {
    fn set(&self, answer: impl Fn(Bytes) -> Option<Bytes> + Send + Sync + 'static) {
        let _ = self.answer.set(Box::new(answer));
    }

    /// Answers a question of another node; `None`: the server ends, or its handler panicked.
    pub(super) async fn answer(&self, question: Bytes) -> Option<Reply> {
        if self.answer.get().is_none() {
            return Some(Reply::NoAnswer);
        }
        let turn = Arc::clone(&self.turns).acquire_owned().await.ok()?;
        let answer = Arc::clone(&self.answer);
        let answering = tokio::task::spawn_blocking(move || {
            let answered = answer.get().and_then(|answer| answer(question));
            drop(turn);
            answered
        });
        answering.await.ok().flatten().map(Reply::Answer)
    }
}

impl Node {
    async fn ask_others(&self, body: Bytes, wanted: impl Fn(&str) -> bool) -> Answers {
        let (others, is_complete) = self.others();
        let mut asking = JoinSet::new();
        for other in others {
            let Other { node, at, is_alive, .. } = other;
            if !wanted(&node.to_string()) {
                continue;
            }
            let (speech, body, from) = (Arc::clone(&self.speech), body.clone(), self.id);
            asking.spawn(async move {
                let answer = match at {
                    Some((address, key)) => {
                        speech.ask_question(address, &Question { from, to: node, key, body }).await
                    }
                    None => Ok(Err(NoAnswer::Unreadable)),
                };
                // A dead node whose listener is closed has ended, and so has one at whose address another node listens.
                let answer = match answer {
                    Err(Ended) => return None,
                    Ok(Err(NoAnswer::Refused)) if !is_alive => return None,
                    Ok(answer) => answer,
                };
                Some((node, at.map(|(address, _)| address), answer))
            });
        }
        let mut answered: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
        answered.sort_unstable_by_key(|(node, ..)| *node);
        let count = |is_ok| answered.iter().filter(|(.., answer)| answer.is_ok() == is_ok).count() as u64;
        Figures::add(&self.figures.questions_answered, count(true));
        Figures::add(&self.figures.questions_unanswered, count(false));
        let answer =
            |(node, address, answer): (NodeId, _, _)| NodeAnswer { node: node.to_string(), address, answer };
        Answers { answers: answered.into_iter().map(answer).collect(), is_complete }
    }

    async fn keep_note(&self, note: Note) -> NoteOutcome {
        let (sender, noted) = oneshot::channel();
        let Some(number) = self.begin_note(note, sender) else { return NoteOutcome::NotKept };
        match tokio::time::timeout(BLOCK_TIME, noted).await {
            Ok(Ok(())) => NoteOutcome::Stored,
            _ => {
                self.forget_noting(number);
                NoteOutcome::Waiting
            }
        }
    }
}

/// The node that was asked has ended: another one listens at its address.
pub(super) struct Ended;

impl super::entry::Speech {
    /// Asks one node.
    async fn ask_question(
        &self,
        address: SocketAddr,
        question: &Question,
    ) -> Result<Result<Bytes, NoAnswer>, Ended> {
        match self.question(address, question).await {
            Ok(Reply::Answer(answer)) => Ok(Ok(answer)),
            Ok(Reply::NoAnswer) => Ok(Err(NoAnswer::NoHandler)),
            Ok(Reply::OtherNode) => Err(Ended),
            Err(error) => {
                tracing::debug!(%address, node = %question.to, %error, "another node did not answer a question");
                Ok(Err(error))
            }
        }
    }
}
