//! Compares what the backend recorded with what the clients list, message by message and in both directions.

use std::collections::{BTreeMap, HashMap};

use crate::Result;

/// A message that the backend sent: the connection, and its place on it.
type Place = (u64, u64);

/// The comparison.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) clients: u64,
    /// Messages of the clients, by what the clients learned about them.
    pub(super) sent: u64,
    pub(super) delivered: u64,
    pub(super) undelivered: u64,
    pub(super) unknown: u64,
    /// No outcome until the end.
    pub(super) pending: u64,
    /// Reported as delivered, and not in the record.
    pub(super) lost_up: u64,
    /// Reported as not delivered, and in the record.
    pub(super) wrongly_undelivered: u64,
    pub(super) twice_up: u64,
    /// Recorded behind a later one that came on the same connection.
    pub(super) disordered_up: u64,
    /// Messages that the backend sent, as it recorded.
    pub(super) pushed: u64,
    pub(super) received: u64,
    /// Not received, where a gap or a replaced backend connection was reported at that place.
    pub(super) missed_at_gaps: u64,
    pub(super) missed_at_replacements: u64,
    /// Not received, and nothing was reported at that place.
    pub(super) lost_down: u64,
    pub(super) twice_down: u64,
    pub(super) disordered_down: u64,
    /// Received, and not in the record.
    pub(super) invented: u64,
    /// Events of the clients.
    pub(super) attached: u64,
    pub(super) fresh: u64,
    pub(super) detached: u64,
    pub(super) gaps: u64,
    pub(super) replaced: u64,
    pub(super) ended: u64,
    /// Messages of the clients that gaps call unknown.
    pub(super) unknown_at_gaps: u64,
    /// Messages of the backend that gaps count as lost.
    pub(super) counted_at_gaps: u64,
    /// Gaps by the reported cause.
    pub(super) causes: BTreeMap<String, u64>,
    /// The largest number of gaps of one client.
    pub(super) most_gaps: u64,
    /// How long clients were without a connection, in milliseconds, sorted.
    pub(super) interruptions: Vec<u64>,
}

/// What was reported since the last message that a client received.
#[derive(Default, Clone, Copy)]
struct Reported {
    gap: bool,
    replacement: bool,
}

#[derive(Default)]
struct Connection {
    client: String,
    /// The number of messages that the backend sent on it.
    sent: u64,
}

#[derive(Default)]
struct Record {
    connections: BTreeMap<u64, Connection>,
    /// By client, the numbers of its connections, in order.
    of_client: HashMap<String, Vec<u64>>,
    /// How often a client's message was recorded.
    taken: HashMap<(String, u64), u64>,
    disordered: u64,
}

impl Verdict {
    pub(super) fn of(record: &str, list: &str) -> Result<Self> {
        let record = Record::parse(record)?;
        let mut verdict = Self {
            pushed: record.connections.values().map(|connection| connection.sent).sum(),
            twice_up: record.taken.values().map(|times| times - 1).sum(),
            disordered_up: record.disordered,
            ..Self::default()
        };
        let mut lines: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for line in list.lines() {
            let (client, what) = line.split_once(' ').ok_or_else(|| format!("no client: {line}"))?;
            lines.entry(client).or_default().push(what);
        }
        for (client, lines) in &lines {
            verdict.clients += 1;
            verdict.judge(client, lines, &record)?;
        }
        verdict.interruptions.sort_unstable();
        Ok(verdict)
    }

    /// Goes through the lines of one client.
    fn judge(&mut self, client: &str, lines: &[&str], record: &Record) -> Result<()> {
        let mut stream = Stream { client, record, last: (0, 0), reported: Reported::default() };
        let (mut detached_at, mut gaps) = (None, 0);
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| -> Result<u64> {
                let word = words.get(at).and_then(|word| word.parse().ok());
                word.ok_or_else(|| format!("{client} {line}: no number {at}").into())
            };
            match words[0] {
                "got" => stream.got(self, (number(1)?, number(2)?)),
                "attached" => {
                    self.attached += 1;
                    self.fresh += u64::from(words.get(1) == Some(&"false"));
                    let at = number(2)?;
                    self.interruptions.extend(detached_at.take().map(|from| at - from));
                }
                "detached" => {
                    self.detached += 1;
                    detached_at = detached_at.or(Some(number(1)?));
                }
                "gap" => {
                    gaps += 1;
                    stream.reported.gap = true;
                    self.unknown_at_gaps += number(2)? - number(1)?;
                    self.counted_at_gaps += number(5)?;
                    *self.causes.entry(words.get(6).unwrap_or(&"").to_string()).or_default() += 1;
                }
                "replaced" | "dropped" => {
                    self.replaced += 1;
                    stream.reported.replacement = true;
                }
                "ended" => self.ended += 1,
                "sent" => self.judge_sent(record, client, number(1)?, words.get(2).copied()),
                _ => return Err(format!("{client} {line}: unknown").into()),
            }
        }
        stream.end(self);
        self.gaps += gaps;
        self.most_gaps = self.most_gaps.max(gaps);
        Ok(())
    }

    fn judge_sent(&mut self, record: &Record, client: &str, id: u64, outcome: Option<&str>) {
        let is_recorded = record.taken.contains_key(&(client.to_owned(), id));
        self.sent += 1;
        match outcome {
            Some("delivered") => {
                self.delivered += 1;
                self.lost_up += u64::from(!is_recorded);
            }
            Some("undelivered") => {
                self.undelivered += 1;
                self.wrongly_undelivered += u64::from(is_recorded);
            }
            Some("unknown") => self.unknown += 1,
            _ => self.pending += 1,
        }
    }

    /// The duration within which `percent` of all interruptions were over, in milliseconds.
    pub(super) fn interrupted(&self, percent: usize) -> u64 {
        let at = (self.interruptions.len() * percent).div_ceil(100).saturating_sub(1);
        self.interruptions.get(at).copied().unwrap_or(0)
    }
}

/// The messages that one client received, held against those that were sent to it.
struct Stream<'a> {
    client: &'a str,
    record: &'a Record,
    last: Place,
    reported: Reported,
}

impl Stream<'_> {
    fn got(&mut self, verdict: &mut Verdict, place: Place) {
        verdict.received += 1;
        let connection = self.record.connections.get(&place.0);
        let is_ours = connection.is_some_and(|connection| connection.client == self.client);
        if !is_ours || connection.is_some_and(|connection| place.1 > connection.sent) {
            verdict.invented += 1;
        } else if place == self.last {
            verdict.twice_down += 1;
        } else if place < self.last {
            verdict.disordered_down += 1; // also one that came before: a repetition further back
        } else {
            self.miss(verdict, self.sent_before(place) - self.sent_before(self.last) - self.own());
            self.last = place;
            self.reported = Reported::default();
        }
    }

    /// Nothing comes any more.
    fn end(&mut self, verdict: &mut Verdict) {
        let rest = self.sent_before((u64::MAX, 0)) - self.sent_before(self.last) - self.own();
        self.miss(verdict, rest);
    }

    /// The last message itself, if there is one.
    fn own(&self) -> u64 {
        u64::from(self.last != (0, 0))
    }

    /// How many messages were sent to this client before the one at `place`.
    fn sent_before(&self, place: Place) -> u64 {
        let numbers = self.record.of_client.get(self.client).map_or(&[][..], Vec::as_slice);
        let earlier = numbers.iter().filter(|number| **number < place.0);
        let sent: u64 =
            earlier.filter_map(|number| self.record.connections.get(number)).map(|c| c.sent).sum();
        sent + place.1.saturating_sub(1)
    }

    fn miss(&mut self, verdict: &mut Verdict, count: u64) {
        *(match self.reported {
            Reported { gap: true, .. } => &mut verdict.missed_at_gaps,
            Reported { replacement: true, .. } => &mut verdict.missed_at_replacements,
            Reported { .. } => &mut verdict.lost_down,
        }) += count;
    }
}

impl Record {
    fn parse(text: &str) -> Result<Self> {
        let mut record = Self::default();
        // The newest number on each connection.
        let mut newest: HashMap<u64, u64> = HashMap::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
            let (Some(word), Some(conn)) = (words.first(), number(1)) else {
                return Err(format!("not a line of the record: {line}").into());
            };
            let connection = record.connections.entry(conn).or_default();
            match (*word, number(2), number(3)) {
                ("open", Some(_), _) => {
                    connection.client = words[2].to_owned();
                    record.of_client.entry(words[2].to_owned()).or_default().push(conn);
                }
                ("take", Some(id), Some(_)) => {
                    connection.sent += 1;
                    *record.taken.entry((connection.client.clone(), id)).or_default() += 1;
                    let newest = newest.entry(conn).or_default();
                    record.disordered += u64::from(id < *newest);
                    *newest = id.max(*newest);
                }
                ("push", Some(_), _) => connection.sent += 1,
                ("close", ..) => {}
                _ => return Err(format!("not a line of the record: {line}").into()),
            }
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two connections of client 7, one after the other: three messages on the first and two on the second.
    const RECORD: &str =
        "open 1 7\npush 1 1\ntake 1 1 2\npush 1 3\nclose 1 1006\nopen 2 7\npush 2 1\ntake 2 2 2\n";

    fn verdict(list: &[&str]) -> Verdict {
        let lines: Vec<String> = list.iter().map(|line| format!("7 {line}\n")).collect();
        Verdict::of(RECORD, &lines.concat()).unwrap()
    }

    #[test]
    fn a_stream_without_a_hole_has_nothing_to_report() {
        let all = ["got 1 1 0", "got 1 2 1", "got 1 3 0", "got 2 1 0", "got 2 2 2"];
        let expected = Verdict { clients: 1, pushed: 5, received: 5, attached: 0, ..Verdict::default() };
        assert_eq!(verdict(&all), expected);
    }

    #[test]
    fn a_hole_without_a_report_is_a_silent_loss_wherever_it_is() {
        for (list, lost) in [
            (&["got 1 1 0", "got 1 3 0", "got 2 1 0", "got 2 2 2"][..], 1), // in a connection
            (&["got 1 1 0", "got 2 1 0", "got 2 2 2"], 2),                  // the end of one
            (&["got 1 2 1", "got 1 3 0", "got 2 2 2"], 2),                  // the beginnings
            (&["got 1 1 0", "got 1 2 1", "got 1 3 0", "got 2 1 0"], 1),     // the end of all
            (&["got 2 2 2"], 4),
        ] {
            assert_eq!(verdict(list).lost_down, lost, "{list:?}");
        }
    }

    #[test]
    fn a_gap_explains_the_hole_at_its_place_and_no_other() {
        let gap = "gap 1 2 4 3 1 Restarted";
        let told = verdict(&["got 1 1 0", "got 1 2 1", gap, "got 2 1 0", "got 2 2 2"]);
        assert_eq!((told.missed_at_gaps, told.lost_down, told.gaps), (1, 0, 1));
        assert_eq!((told.unknown_at_gaps, told.counted_at_gaps), (1, 1));
        let elsewhere = verdict(&["got 1 1 0", gap, "got 1 2 1", "got 2 1 0", "got 2 2 2"]);
        assert_eq!((elsewhere.missed_at_gaps, elsewhere.lost_down), (0, 1));
        let replaced = verdict(&["got 1 1 0", "got 1 2 1", "replaced 1", "got 2 1 0", "got 2 2 2"]);
        assert_eq!((replaced.missed_at_replacements, replaced.lost_down), (1, 0));
    }

    #[test]
    fn repetitions_disorder_and_inventions_are_distinguished() {
        let twice = verdict(&["got 1 1 0", "got 1 1 0", "got 1 2 1", "got 1 3 0", "got 2 1 0", "got 2 2 2"]);
        assert_eq!((twice.twice_down, twice.disordered_down, twice.lost_down), (1, 0, 0));
        let late = verdict(&["got 1 1 0", "got 1 3 0", "got 1 2 1", "got 2 1 0", "got 2 2 2"]);
        assert_eq!((late.twice_down, late.disordered_down), (0, 1));
        assert_eq!(verdict(&["got 9 1 0"]).invented, 1);
        assert_eq!(verdict(&["got 2 3 0"]).invented, 1);
    }

    #[test]
    fn what_a_client_learned_of_its_messages_is_held_against_the_record() {
        let list = [
            "sent 1 delivered",
            "sent 2 undelivered",
            "sent 3 delivered",
            "sent 4 unknown",
            "sent 5 pending",
        ];
        let found = verdict(&list);
        assert_eq!((found.sent, found.delivered, found.undelivered), (5, 2, 1));
        assert_eq!((found.unknown, found.pending), (1, 1));
        assert_eq!((found.lost_up, found.wrongly_undelivered), (1, 1));
    }

    #[test]
    fn a_message_that_the_backend_took_twice_is_found_on_whatever_connections() {
        let record = "open 1 7\ntake 1 1 1\ntake 1 2 2\ntake 1 1 3\nopen 2 7\ntake 2 2 1\n";
        let found = Verdict::of(record, "7 got 1 1 1\n7 got 1 2 2\n7 got 1 3 1\n7 got 2 1 2\n").unwrap();
        assert_eq!((found.twice_up, found.disordered_up), (2, 1));
    }

    #[test]
    fn interruptions_last_from_the_loss_to_the_next_connection() {
        let found = verdict(&[
            "attached false 5",
            "detached 10",
            "attached true 30",
            "detached 40",
            "attached true 45",
        ]);
        assert_eq!((found.interruptions.as_slice(), found.fresh), (&[5, 20][..], 1));
        assert_eq!((found.interrupted(50), found.interrupted(99)), (5, 20));
    }
}
