use super::*;
use crate::protocols::saved;

fn rules(record: &[&str], hide: &[&str], pass: &[&str]) -> Rules {
    let answer = |passes| move |text: &&str| Answer { rule: Rule::parse(text).unwrap(), passes };
    Rules {
        record: record.iter().map(|text| Rule::parse(text).unwrap()).collect(),
        answers: hide.iter().map(answer(false)).chain(pass.iter().map(answer(true))).collect(),
        ..Rules::default()
    }
}

/// As [`rules`], with `/id` as the key of frames, which a message of type `done` removes.
fn keyed(record: &[&str], hide: &[&str], pass: &[&str]) -> Rules {
    let forget = vec![Pattern::parse("json=/type=done").unwrap()];
    Rules { key: Some("/id".into()), forget, ..rules(record, hide, pass) }
}

/// A client, a link that numbers its messages, and one connection after the other.
struct Play {
    prologue: Prologue,
    now: Instant,
    last: u64,
}

impl Play {
    fn by(rules: Rules) -> Self {
        Self { prologue: Prologue::new(Arc::new(rules)), now: Instant::now(), last: 0 }
    }

    fn client(&mut self, text: &str) -> &mut Self {
        self.last += 1;
        self.prologue.handle_client(self.last, &Message::text(text));
        self
    }

    fn backend(&mut self, text: &str, expected: Verdict) -> &mut Self {
        assert_eq!(self.prologue.handle_backend(&Message::text(text)), expected, "{text}");
        self
    }

    /// The next connection; the link keeps no message.
    fn again(&mut self) -> &mut Self {
        self.again_settled(self.last)
    }

    fn again_settled(&mut self, settled: u64) -> &mut Self {
        self.prologue.handle_lost();
        self.prologue.begin(self.now, settled).unwrap();
        self
    }

    /// The frames that are written to the connection now.
    fn written(&mut self, expected: &[&str]) -> &mut Self {
        let written = std::iter::from_fn(|| self.prologue.poll_transmit());
        let written: Vec<_> = written.map(|message| message.as_text().unwrap().to_owned()).collect();
        assert_eq!(written, expected);
        self
    }

    fn done(&mut self, expected: bool) -> &mut Self {
        assert_eq!(self.prologue.is_done(), expected);
        self
    }
}

use Verdict::{Hide, Pass};

#[test]
fn recorded_frames_are_replayed_to_each_new_connection_in_the_order_of_the_client() {
    for (rule, expected) in [
        ("first=2", &["login", "join a"][..]),
        ("until=^join", &["login", "join a"]),
        ("until=never", &["login", "join a", "say", "join b"]),
        ("match=^join", &["join a", "join b"]),
    ] {
        let mut play = Play::by(rules(&[rule], &[], &[]));
        play.client("login").client("join a").client("say").client("join b");
        play.written(&[]).done(false);
        for _ in 0..2 {
            play.again().written(expected).done(true).done(false);
        }
    }
}

#[test]
fn an_answer_that_the_client_received_is_awaited_before_the_next_frame_and_hidden() {
    let mut play = Play::by(rules(&["match=^(login|join)"], &["match=^welcome"], &[]));
    play.client("login").backend("welcome you", Pass).client("join").client("say");
    play.again().written(&["login"]).done(false);
    play.backend("news", Pass).backend("welcome back", Hide);
    play.written(&["join"]).done(true);
    play.backend("welcome, all", Pass);
}

#[test]
fn a_frame_that_was_never_answered_is_not_awaited_and_its_answer_reaches_the_client() {
    let mut play = Play::by(rules(&["match=^login"], &["match=^welcome"], &[]));
    play.client("login").again().written(&["login"]).done(true);
    play.backend("welcome", Pass);
    play.again().written(&["login"]).done(false).backend("welcome", Hide).done(true);
}

#[test]
fn a_greeting_is_awaited_before_the_replay_and_not_delivered_twice() {
    let mut play = Play::by(rules(&["match=^join"], &["match=^hello"], &[]));
    play.backend("hello", Pass).client("join");
    play.again().written(&[]).done(false).backend("hello", Hide).written(&["join"]).done(true);

    // A greeting of a counting rule may arrive before or after the replayed frames.
    let mut play = Play::by(rules(&["match=^join"], &["first=1"], &[]));
    play.backend("RFB 003.008", Pass).backend("a frame", Pass).client("join");
    play.again().written(&["join"]).done(false).backend("RFB 003.008", Hide).done(true);
    play.backend("a frame", Pass);
}

#[test]
fn a_greeting_that_the_first_connection_did_not_send_passes() {
    for hidden in ["match=^hello", "first=1"] {
        let mut play = Play::by(rules(&["match=^join"], &[hidden], &[]));
        play.again().done(true).backend("hello", Pass).client("join");
        play.again().backend("hello", Hide).written(&["join"]).done(true);
    }
}

#[test]
fn an_until_rule_hides_everything_up_to_its_match() {
    let mut play = Play::by(rules(&["first=1"], &["until=ready"], &[]));
    play.client("login").backend("motd", Pass).backend("ready", Pass).backend("news", Pass);
    play.again().written(&["login"]).done(false);
    play.backend("motd", Hide).done(false).backend("ready", Hide).done(true).backend("news", Pass);
}

#[test]
fn answers_that_pass_are_awaited_at_the_end_and_delay_no_frame() {
    let join = |id| format!(r#"{{"type":"join","id":"{id}"}}"#);
    let joined = |id| format!(r#"{{"type":"joined","id":"{id}"}}"#);
    let mut play = Play::by(keyed(&["json=/type=join"], &[], &["json=/type=joined"]));
    play.client(&join("a")).client(&join("b")).backend(&joined("b"), Pass).backend(&joined("a"), Pass);
    play.again().written(&[&join("a"), &join("b")]).done(false);
    play.backend(&joined("b"), Pass).done(false).backend(&joined("a"), Pass).done(true);
}

#[test]
fn a_frame_is_removed_when_either_end_cancels_it_and_replaced_by_one_with_its_key() {
    let join = |id, what| format!(r#"{{"type":"join","id":{id},"what":"{what}"}}"#);
    let done = |id| format!(r#"{{"type":"done","id":{id}}}"#);
    let mut play = Play::by(keyed(&["json=/type=join"], &[], &[]));
    play.client(&join(1, "a")).client(&join(2, "b")).client(&join(3, "c")).client(&join(1, "d"));
    play.client(&done(2)).backend(&done(3), Pass).client(&done(9)).client(r#"{"type":"done"}"#);
    play.again().written(&[&join(1, "d")]).done(true);
}

#[test]
fn a_frame_that_is_removed_during_the_replay_is_not_awaited_any_more() {
    let join = |id| format!(r#"{{"type":"join","id":"{id}"}}"#);
    let joined = |id| format!(r#"{{"type":"joined","id":"{id}"}}"#);
    let mut play = Play::by(keyed(&["json=/type=join"], &[], &["json=/type=joined"]));
    play.client(&join("a")).client(&join("b")).backend(&joined("a"), Pass).backend(&joined("b"), Pass);
    play.again().written(&[&join("a"), &join("b")]).done(false).backend(&joined("a"), Pass);
    play.backend(r#"{"type":"done","id":"b"}"#, Pass).done(true);
    play.again().written(&[&join("a")]);
}

#[test]
fn an_identical_frame_keeps_the_answer_of_the_first() {
    let join = r#"{"type":"join","id":"a"}"#;
    let joined = r#"{"type":"joined","id":"a"}"#;
    let mut play = Play::by(keyed(&["json=/type=join"], &["json=/type=joined"], &[]));
    play.client(join).backend(joined, Pass).client(join);
    play.again().written(&[join]).done(false).backend(joined, Hide).done(true);
}

#[test]
fn frames_that_the_link_still_keeps_are_left_to_the_link_and_their_second_answer_is_hidden() {
    let mut play = Play::by(rules(&["match=^(login|join)"], &["match=^ok"], &[]));
    play.client("login").backend("ok login", Pass).client("join").backend("ok join", Pass);
    play.again_settled(1).written(&["login"]).done(false).backend("ok login", Hide).done(true);
    play.backend("ok join", Hide).backend("ok", Pass);
}

#[test]
fn a_replay_that_was_interrupted_starts_from_the_beginning() {
    let mut play = Play::by(rules(&["first=2"], &["match=^ok"], &[]));
    play.client("login").client("join").backend("ok", Pass).backend("ok", Pass);
    play.again().written(&["login"]).backend("ok", Hide).written(&["join"]).done(false);
    play.again().written(&["login"]).backend("ok", Hide).written(&["join"]);
    play.done(false).backend("ok", Hide).done(true);
}

#[test]
fn an_answer_that_does_not_arrive_is_awaited_for_ten_seconds() {
    let mut play = Play::by(rules(&["first=1"], &["match=^ok"], &[]));
    play.client("login").backend("ok", Pass).again().written(&["login"]);
    let due = play.now + Duration::from_secs(10);
    assert_eq!(play.prologue.poll_timeout(), Some(due));
    play.prologue.postpone(Duration::from_secs(3));
    assert_eq!(play.prologue.poll_timeout(), Some(due + Duration::from_secs(3)));
    play.backend("ok", Hide).done(true);
    assert_eq!(play.prologue.poll_timeout(), None);
}

#[test]
fn more_than_the_limit_is_not_replayed_and_holds_no_memory() {
    for (size, count) in [(1, 257), (100_000, 3)] {
        let mut play = Play::by(rules(&["match=."], &[], &[]));
        for _ in 0..count {
            play.client(&"x".repeat(size));
        }
        assert_eq!(play.prologue.begin(play.now, play.last), Err(ReplayError::TooMuch), "{size}");
        assert_eq!((play.prologue.frames.len(), play.prologue.bytes), (0, 0));
        assert!(!play.prologue.is_replaying());
    }
    let mut play = Play::by(rules(&["match=."], &[], &[]));
    for _ in 0..256 {
        play.client(&"x".repeat(1024));
    }
    assert_eq!(play.prologue.begin(play.now, play.last), Ok(()));
}

#[test]
fn a_prologue_that_was_given_up_records_no_more() {
    let mut play = Play::by(rules(&["match=."], &[], &[]));
    play.client("login");
    play.prologue.give_up();
    play.client("join");
    assert_eq!(play.prologue.bytes(), 0);
    assert_eq!(play.prologue.begin(play.now, play.last), Err(ReplayError::TooMuch));
}

#[test]
fn removed_frames_make_room() {
    let mut play = Play::by(keyed(&["json=/type=join"], &[], &[]));
    for number in 0..1000 {
        play.client(&format!(r#"{{"type":"join","id":{number}}}"#));
        play.client(&format!(r#"{{"type":"done","id":{number}}}"#));
    }
    play.again().written(&[]).done(true);
}

#[test]
fn an_announced_restart_is_hidden_from_the_client() {
    let announces_restart: Option<fn(&Message) -> bool> =
        Some(|message| message.as_text() == Some("restarting"));
    let mut play = Play::by(Rules { announces_restart, ..rules(&["first=1"], &[], &[]) });
    play.client("login").backend("unauthorized", Pass);
    play.backend("restarting", Hide).again().backend("restarting", Hide);
}

#[test]
fn five_interrupted_replays_in_a_row_are_an_error() {
    let mut play = Play::by(rules(&["first=1"], &["match=^ok"], &[]));
    play.client("login").backend("ok", Pass);
    for _ in 0..2 {
        for _ in 0..4 {
            play.again().written(&["login"]).done(false);
        }
        play.again().written(&["login"]).backend("ok", Hide).done(true);
    }
    for _ in 0..5 {
        play.again().done(false);
    }
    play.prologue.handle_lost();
    assert_eq!(play.prologue.begin(play.now, play.last), Err(ReplayError::Interrupted));
}

impl Play {
    /// The same client on a link of another process, after message `upto`: later ones come again.
    fn moved(&self, upto: u64) -> Self {
        let mut to = Writer::new();
        self.prologue.save(upto, &mut to);
        let bytes = to.into_bytes();
        let mut from = Reader::new(&bytes).unwrap();
        let prologue = Prologue::restore(Arc::clone(&self.prologue.rules), &mut from).unwrap();
        from.finish().unwrap();
        let mut again = Writer::new();
        prologue.save(0, &mut again);
        assert_eq!(again.into_bytes(), bytes, "a session that moves on at once takes the same along");
        Self { prologue, now: self.now, last: 0 }
    }
}

#[test]
fn a_prologue_that_moved_is_replayed_first_with_the_answers_that_the_client_received() {
    let mut play = Play::by(rules(&["match=^(login|join)"], &["match=^ok"], &[]));
    play.client("login").backend("ok login", Pass).client("join").client("join again");
    let mut moved = play.moved(2);
    moved.again_settled(0).written(&["login"]).done(false).backend("ok login", Hide);
    moved.written(&["join"]).done(true).backend("ok join", Pass);
    moved.client("join again").backend("ok again", Pass);
    moved.again().written(&["login"]).backend("ok login", Hide).written(&["join"]).done(false);
}

#[test]
fn a_frame_that_the_client_sends_again_after_a_move_is_recorded_by_the_same_rules() {
    for (rule, upto, expected) in [
        ("first=2", 1, &["login", "join a"][..]),
        ("first=2", 2, &["login", "join a"]),
        ("until=^join", 1, &["login", "join a"]),
        ("until=^join", 2, &["login", "join a"]),
        ("until=never", 3, &["login", "join a", "say", "join b"]),
        ("match=^join", 0, &["join a", "join b"]),
    ] {
        let frames = ["login", "join a", "say", "join b"];
        let mut play = Play::by(rules(&[rule], &[], &[]));
        for frame in frames {
            play.client(frame);
        }
        let mut moved = play.moved(upto);
        moved.again_settled(0);
        for frame in &frames[upto as usize..] {
            moved.client(frame);
        }
        moved.again().written(expected).done(true);
    }
}

#[test]
fn keys_and_counted_answers_move_along() {
    let join = |id: &str| format!(r#"{{"type":"join","id":"{id}"}}"#);
    let mut play = Play::by(keyed(&["json=/type=join"], &["first=1"], &[]));
    play.backend("hello", Pass).client(&join("a")).client(&join("b"));
    let mut moved = play.moved(2);
    moved.backend(r#"{"type":"done","id":"a"}"#, Pass);
    moved.again_settled(0).written(&[&join("b")]).done(false).backend("hello", Hide).done(true);
}

#[test]
fn a_prologue_that_was_given_up_moves_as_such() {
    let mut play = Play::by(rules(&["match=."], &[], &[]));
    play.client("login").prologue.give_up();
    let mut moved = play.moved(1);
    assert_eq!(moved.prologue.begin(moved.now, 0), Err(ReplayError::TooMuch));
}

#[test]
fn a_prologue_of_other_rules_or_in_damaged_bytes_is_not_restored() {
    let mut play = Play::by(rules(&["first=2"], &["match=^ok"], &[]));
    play.client("login").backend("ok", Pass);
    let mut to = Writer::new();
    play.prologue.save(1, &mut to);
    let bytes = to.into_bytes();
    let restore = |rules: Rules, bytes: &[u8]| {
        let mut from = Reader::new(bytes)?;
        Prologue::restore(Arc::new(rules), &mut from)?;
        from.finish()
    };
    let same = || rules(&["first=2"], &["match=^ok"], &[]);
    assert!(restore(same(), &bytes).is_ok());
    for other in [rules(&["first=3"], &["match=^ok"], &[]), rules(&["first=2"], &[], &["match=^ok"])] {
        assert!(restore(other, &bytes).is_err());
    }
    for length in 0..bytes.len() {
        assert!(restore(same(), &bytes[..length]).is_err(), "{length}");
    }
    let newer = [&[saved::VERSION + 1], &bytes[1..]].concat();
    assert!(restore(same(), &newer).is_err() && restore(same(), &[&bytes[..], &[0]].concat()).is_err());
}
