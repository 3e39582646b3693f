//! Every answer of the scripts, from the scripts themselves: what later phases use of them too.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value, cmd};

use crate::server::Server;

const COMMIT: &str = include_str!("../../src/cluster/commit.lua");
const CLAIM: &str = include_str!("../../src/cluster/claim.lua");

/// The keys of the one session.
const KEYS: [&str; 2] = ["mainstay:test:s:{1}", "mainstay:test:s:{1}:o"];

/// Two names of tokens, and one that the session does not have.
const NAMES: [&str; 3] = ["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "cccccccccccccccc"];

struct Session(MultiplexedConnection);

/// A commit, with defaults for what a case does not name.
#[derive(Clone, Copy)]
struct Commit {
    claim: u64,
    owner: &'static str,
    number: u64,
    whole: bool,
    base: u64,
    free: bool,
    saved: &'static str,
    rest: &'static [&'static str],
    messages: &'static [&'static str],
}

const FIRST: Commit = Commit {
    claim: 1,
    owner: "A",
    number: 1,
    whole: true,
    base: 0,
    free: false,
    saved: "",
    rest: &[],
    messages: &[],
};

impl Session {
    async fn commit(&mut self, commit: Commit) -> String {
        let mut run = script(COMMIT);
        let flag = |set: bool| if set { "1" } else { "0" };
        run.arg(commit.claim).arg(commit.owner).arg(commit.number).arg(flag(commit.whole));
        run.arg(commit.base).arg(5).arg(60_000).arg(flag(commit.free)).arg("inc").arg(commit.saved);
        run.arg(1 + commit.rest.len()).arg([NAMES[0], NAMES[1]].concat());
        commit.rest.iter().chain(commit.messages).for_each(|part| _ = run.arg(*part));
        shown(run.query_async(&mut self.0).await.unwrap())
    }

    async fn claim(&mut self, thought: &str, claimant: &str, name: &str) -> String {
        let mut run = script(CLAIM);
        run.arg(thought).arg(claimant).arg(name).arg(60_000).arg(0);
        shown(run.query_async(&mut self.0).await.unwrap())
    }

    /// As [`claim`](Self::claim), of a session that its owner states not to have.
    async fn claim_disowned(&mut self, owner: &str, claimant: &str, name: &str) -> String {
        let mut run = script(CLAIM);
        run.arg(owner).arg(claimant).arg(name).arg(60_000).arg(1);
        shown(run.query_async(&mut self.0).await.unwrap())
    }

    async fn clear(&mut self) {
        redis::cmd("FLUSHALL").exec_async(&mut self.0).await.unwrap();
    }

    /// A field of the session; `-` if it has none.
    async fn field(&mut self, field: &str) -> String {
        let value: Option<String> =
            redis::cmd("HGET").arg(KEYS[0]).arg(field).query_async(&mut self.0).await.unwrap();
        value.unwrap_or_else(|| "-".to_owned())
    }

    async fn messages(&mut self) -> String {
        let messages: Vec<String> =
            redis::cmd("LRANGE").arg(KEYS[1]).arg(0).arg(-1).query_async(&mut self.0).await.unwrap();
        messages.join(" ")
    }

    async fn lives(&mut self) -> [bool; 2] {
        let mut lives = [false; 2];
        for (key, lives) in KEYS.iter().zip(&mut lives) {
            let left: i64 = redis::cmd("PTTL").arg(key).query_async(&mut self.0).await.unwrap();
            *lives = left > 0;
        }
        lives
    }
}

fn script(code: &str) -> Cmd {
    let mut run = cmd("EVAL");
    run.arg(code).arg(KEYS.len()).arg(&KEYS);
    run
}

/// An answer in words: `stored`, `fenced B`, `yours c=2 o=B messages: x y`.
fn shown(answer: Value) -> String {
    let Value::Array(parts) = answer else { panic!("{answer:?}") };
    let text = |part: &Value| match part {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::Nil => "nil".to_owned(),
        part => panic!("{part:?}"),
    };
    match &parts[..] {
        [kind, Value::Array(fields), Value::Array(messages)] => {
            let mut pairs: Vec<_> =
                fields.chunks(2).map(|pair| format!("{}={}", text(&pair[0]), text(&pair[1]))).collect();
            pairs.retain(|pair| pair.starts_with("c=") || pair.starts_with("o=") || pair.starts_with("n="));
            pairs.sort();
            let messages: Vec<_> = messages.iter().map(text).collect();
            format!("{} {} messages: {}", text(kind), pairs.join(" "), messages.join(" "))
                .trim_end()
                .to_owned()
        }
        words => words.iter().map(text).collect::<Vec<_>>().join(" "),
    }
}

async fn session() -> (Server, Session) {
    let server = Server::start(&[]).await;
    let connection = server.connection().await;
    (server, Session(connection))
}

#[tokio::test]
async fn a_commit_gets_every_answer_of_its_script() {
    let (_server, mut it) = session().await;

    // Nothing is there yet.
    assert_eq!(it.commit(Commit { whole: false, ..FIRST }).await, "behind");
    assert_eq!(it.commit(Commit { messages: &["x", "y"], ..FIRST }).await, "stored");
    assert_eq!(
        (it.field("o").await, it.field("l").await, it.messages().await),
        ("A".into(), "2".into(), "x y".into())
    );
    assert_eq!(it.lives().await, [true, true]);

    // A duplicate changes nothing, whatever it carries.
    assert_eq!(it.commit(Commit { messages: &["z"], ..FIRST }).await, "stored");
    assert_eq!(it.commit(Commit { whole: false, messages: &["z"], ..FIRST }).await, "stored");
    assert_eq!(it.messages().await, "x y");

    // What changed, in order.
    let second = Commit { number: 2, whole: false, messages: &["z"], ..FIRST };
    assert_eq!(it.commit(second).await, "stored");
    assert_eq!((it.messages().await, it.field("l").await), ("x y z".into(), "3".into()));
    assert_eq!(it.commit(second).await, "stored");
    assert_eq!(it.commit(Commit { number: 1, whole: false, messages: &["late"], ..FIRST }).await, "stored");
    assert_eq!(it.messages().await, "x y z");

    // One that comes before its predecessor.
    assert_eq!(it.commit(Commit { number: 4, whole: false, ..FIRST }).await, "behind");
    assert_eq!(it.messages().await, "x y z");

    // The client acknowledged two.
    assert_eq!(it.commit(Commit { number: 3, whole: false, base: 2, ..FIRST }).await, "stored");
    assert_eq!(
        (it.messages().await, it.field("b").await, it.field("l").await),
        ("z".into(), "2".into(), "1".into())
    );

    // The whole session, without its gap.
    assert_eq!(it.commit(Commit { number: 9, base: 3, messages: &["w"], ..FIRST }).await, "stored");
    assert_eq!((it.messages().await, it.field("n").await), ("w".into(), "9".into()));

    // Everything was acknowledged: the list is gone.
    assert_eq!(it.commit(Commit { number: 10, whole: false, base: 4, ..FIRST }).await, "stored");
    assert_eq!(
        (it.messages().await, it.field("l").await, it.lives().await),
        ("".into(), "0".into(), [true, false])
    );
}

#[tokio::test]
async fn a_commit_of_another_claim_is_fenced() {
    let (_server, mut it) = session().await;
    assert_eq!(it.commit(Commit { claim: 5, ..FIRST }).await, "stored");
    // An old claim; the same claim of another node; an old claim with the whole session.
    assert_eq!(it.commit(Commit { claim: 4, owner: "B", number: 7, ..FIRST }).await, "fenced A");
    assert_eq!(it.commit(Commit { claim: 5, owner: "B", number: 7, ..FIRST }).await, "fenced A");
    assert_eq!(it.commit(Commit { claim: 4, number: 7, whole: false, ..FIRST }).await, "fenced A");
    assert_eq!(it.field("n").await, "1");
    // A later claim that the engine has lost needs the whole session.
    assert_eq!(it.commit(Commit { claim: 6, owner: "B", number: 2, whole: false, ..FIRST }).await, "behind");
    assert_eq!(it.commit(Commit { claim: 6, owner: "B", number: 2, ..FIRST }).await, "stored");
    assert_eq!(it.field("o").await, "B");
    // A release that is repeated finds no owner: it worked.
    assert_eq!(it.commit(Commit { claim: 6, owner: "B", number: 3, free: true, ..FIRST }).await, "stored");
    assert_eq!(it.field("o").await, "");
    assert_eq!(it.commit(Commit { claim: 6, owner: "B", number: 3, free: true, ..FIRST }).await, "fenced ");
}

#[tokio::test]
async fn a_commit_keeps_what_was_saved_until_it_changes() {
    let (_server, mut it) = session().await;
    assert_eq!(it.commit(Commit { saved: "=one", rest: &["rest"], ..FIRST }).await, "stored");
    assert_eq!((it.field("s").await, it.field("h2").await), ("=one".into(), "rest".into()));
    assert_eq!(it.commit(Commit { number: 2, whole: false, ..FIRST }).await, "stored");
    assert_eq!(it.field("s").await, "=one");
    assert_eq!(it.commit(Commit { number: 3, whole: false, saved: "=", ..FIRST }).await, "stored");
    assert_eq!(it.field("s").await, "=");
    assert_eq!(it.commit(Commit { number: 4, ..FIRST }).await, "stored");
    assert_eq!((it.field("s").await, it.field("h2").await), ("-".into(), "-".into()));
}

#[tokio::test]
async fn a_claim_gets_every_answer_of_its_script() {
    let (_server, mut it) = session().await;
    let stored = Commit { messages: &["x", "y"], ..FIRST };

    // No session; a session, and another token.
    assert_eq!(it.claim("A", "B", NAMES[0]).await, "none");
    it.commit(stored).await;
    assert_eq!(it.claim("A", "B", NAMES[2]).await, "none");
    assert_eq!(it.claim("A", "B", "").await, "none");

    // The claimant is wrong about the owner; then right. Either token does.
    assert_eq!(it.claim("X", "B", NAMES[0]).await, "moved A");
    assert_eq!(it.claim("A", "B", NAMES[0]).await, "yours c=2 n=0 o=B messages: x y");
    assert_eq!(it.claim("A", "B", NAMES[1]).await, "yours c=2 n=0 o=B messages: x y", "a repeated claim");
    assert_eq!(it.claim("A", "C", NAMES[0]).await, "moved B");
    // What B took over is given to no other node before B has committed it: B may have continued it.
    assert_eq!(it.claim("B", "C", NAMES[1]).await, "none");
    assert_eq!(it.claim("B", "B", NAMES[1]).await, "yours c=2 n=0 o=B messages: x y");
    assert_eq!(it.commit(Commit { claim: 2, owner: "B", ..stored }).await, "stored");
    assert_eq!(it.claim("B", "C", NAMES[1]).await, "yours c=3 n=0 o=C messages: x y");
    assert_eq!(it.lives().await, [true, true]);

    // The old owners write nothing any more, and the new one begins with 1.
    assert_eq!(it.commit(Commit { number: 2, whole: false, ..FIRST }).await, "fenced C");
    assert_eq!(it.commit(Commit { claim: 2, owner: "B", ..FIRST }).await, "fenced C");
    let third = Commit { claim: 3, owner: "C", whole: false, messages: &["z"], ..FIRST };
    assert_eq!(it.commit(third).await, "stored");
    assert_eq!(it.commit(third).await, "stored");
    assert_eq!(it.messages().await, "x y z");

    // Released: any node may have it, one does.
    it.clear().await;
    it.commit(Commit { free: true, ..stored }).await;
    assert_eq!(it.claim("X", "B", NAMES[0]).await, "yours c=2 n=0 o=B messages: x y");
    assert_eq!(it.claim("A", "C", NAMES[0]).await, "moved B");
    // B lives, and does not have it: the answer to its claim was lost.
    assert_eq!(it.claim_disowned("A", "C", NAMES[0]).await, "moved B");
    assert_eq!(it.claim_disowned("B", "C", NAMES[0]).await, "yours c=3 n=0 o=C messages: x y");

    // The name of one token alone.
    it.clear().await;
    it.commit(Commit { free: true, ..FIRST }).await;
    assert_eq!(it.claim("A", "B", NAMES[1]).await, "yours c=2 n=0 o=B messages:");
}

#[tokio::test]
async fn a_session_without_a_part_of_its_messages_is_none() {
    let (server, mut it) = session().await;
    it.commit(Commit { free: true, messages: &["x"], ..FIRST }).await;
    let _: i64 = server.run(&format!("DEL {}", KEYS[1])).await;
    assert_eq!(it.claim("A", "B", NAMES[0]).await, "none");
    assert_eq!(it.field("o").await, "", "nothing was changed");
}
