//! Messages of `mainstay.v1` as JSON, the way `conformance/` writes them.

use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::session::message::{
    Account, Beat, ClientKey, Delay, GapCause, Hello, Instance, LossCause, Resume, ResumeToken, SessionId,
    Welcome,
};
use mainstay_proto::session::{Control, Credentials, Frame, Message, Window};
use serde_json::{Map, Value, json};

pub(crate) fn to_json(frame: &Frame) -> Value {
    match frame {
        Frame::Message(message) => message_to_json(message),
        Frame::Reserved => json!({"reserved": true}),
        Frame::Control(control) => {
            let fields = control_to_json(control);
            let present = fields.as_object().unwrap().iter().filter(|(_, value)| !value.is_null());
            let present: Map<_, _> = present.map(|(name, value)| (name.clone(), value.clone())).collect();
            json!({control.name(): present})
        }
    }
}

pub(crate) fn from_json(value: &Value) -> Frame {
    let (name, fields) = value.as_object().unwrap().iter().next().unwrap();
    match name.as_str() {
        "reserved" => Frame::Reserved,
        "text" | "binary" => Frame::Message(message_from_json(value)),
        name => Frame::Control(control_from_json(name, &Fields(fields))),
    }
}

pub(crate) fn message_to_json(message: &Message) -> Value {
    match message.as_text() {
        Some(text) => json!({"text": text}),
        None => json!({"binary": hex(message.payload())}),
    }
}

pub(crate) fn cause_to_json(cause: LossCause) -> &'static str {
    match cause {
        LossCause::Unknown => "unknown",
        LossCause::Expired => "expired",
        LossCause::Ended => "ended",
        LossCause::Evicted => "evicted",
        LossCause::Restarted => "restarted",
        LossCause::Replaced => "replaced",
        other => panic!("{other:?} has no name in the vectors"),
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
    assert!(digits.len().is_multiple_of(2), "{text}");
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn control_to_json(control: &Control) -> Value {
    match control {
        Control::Hello(hello) => json!({
            "window": window_to_json(hello.window),
            "key": hex(&hello.key.0),
            "key_age_ms": millis(hello.key_age),
            "instance": hex(&hello.instance.0),
            "attempt": hello.attempt,
            "resume": hello.resume.as_ref().map(|resume| json!({
                "token": hex(&resume.token.0),
                "acknowledged": resume.acknowledged,
                "sent": resume.sent,
                "first_held": resume.first_held,
            })),
            "credentials": hello.credentials.as_ref().map(|credentials| hex(&credentials.0)),
            "resume_window_ms": hello.resume_window.map(millis),
            "max_message": hello.max_message,
        }),
        Control::Welcome(welcome) => json!({
            "id": hex(&welcome.id.0),
            "token": hex(&welcome.token.0),
            "epoch": welcome.epoch,
            "resumed": welcome.resumed,
            "acknowledged": welcome.acknowledged,
            "first": welcome.first,
            "resume_window_ms": millis(welcome.resume_window),
            "heartbeat_interval_ms": millis(welcome.heartbeat_interval),
            "window": window_to_json(welcome.window),
            "account": welcome.account.map(account_to_json),
            "resume_at": welcome.resume_at,
            "max_message": welcome.max_message,
        }),
        Control::Ack { acknowledged, window } => {
            json!({"acknowledged": acknowledged, "window": window.map(window_to_json)})
        }
        Control::Ping(beat) | Control::Pong(beat) => {
            json!({"nonce": beat.nonce, "sent": beat.sent, "acknowledged": beat.acknowledged})
        }
        Control::GoAway { reason, delay, close_in, endpoint } => json!({
            "reason": reason,
            "delay_ms": delay_to_json(*delay),
            "close_in_ms": millis(*close_in),
            "endpoint": endpoint,
        }),
        Control::Gap { first, count, cause } => {
            let cause = if *cause == GapCause::Overflow { "overflow" } else { "coalesced" };
            json!({"first": first, "count": count, "cause": cause})
        }
        Control::End { code, reason, acknowledged, delivered } => {
            json!({"code": code, "reason": reason, "acknowledged": acknowledged, "delivered": delivered})
        }
        Control::Auth { credentials } => json!({"credentials": hex(&credentials.0)}),
        Control::AuthResult { accepted, expires_in } => {
            json!({"accepted": accepted, "expires_in_ms": millis(*expires_in)})
        }
        Control::Volatile(message) => message_to_json(message),
        Control::Refuse { code, temporary, delay, account } => json!({
            "code": code,
            "temporary": temporary,
            "delay_ms": delay_to_json(*delay),
            "account": account.map(account_to_json),
        }),
        Control::Replaced { after, count } => json!({"after": after, "count": count}),
    }
}

fn control_from_json(name: &str, fields: &Fields<'_>) -> Control {
    let beat = || Beat {
        nonce: fields.integer("nonce"),
        sent: fields.integer("sent"),
        acknowledged: fields.integer("acknowledged"),
    };
    match name {
        "HELLO" => Control::Hello(Box::new(Hello {
            window: fields.window().unwrap(),
            key: ClientKey(fields.array("key")),
            key_age: fields.duration("key_age_ms"),
            instance: Instance(fields.array("instance")),
            attempt: fields.integer("attempt"),
            resume: fields.object("resume").map(|resume| Resume {
                token: ResumeToken(resume.bytes("token")),
                acknowledged: resume.integer("acknowledged"),
                sent: resume.integer("sent"),
                first_held: resume.integer("first_held"),
            }),
            credentials: fields.has("credentials").then(|| Credentials(fields.bytes("credentials"))),
            resume_window: fields.has("resume_window_ms").then(|| fields.duration("resume_window_ms")),
            max_message: fields.has("max_message").then(|| fields.integer("max_message")),
        })),
        "WELCOME" => Control::Welcome(Box::new(Welcome {
            id: SessionId(fields.array("id")),
            token: ResumeToken(fields.bytes("token")),
            epoch: fields.integer("epoch"),
            resumed: fields.flag("resumed"),
            acknowledged: fields.integer("acknowledged"),
            first: fields.integer("first"),
            resume_window: fields.duration("resume_window_ms"),
            heartbeat_interval: fields.duration("heartbeat_interval_ms"),
            window: fields.window().unwrap(),
            account: fields.account(),
            resume_at: fields.has("resume_at").then(|| fields.text("resume_at")),
            max_message: fields.has("max_message").then(|| fields.integer("max_message")),
        })),
        "ACK" => Control::Ack { acknowledged: fields.integer("acknowledged"), window: fields.window() },
        "PING" => Control::Ping(beat()),
        "PONG" => Control::Pong(beat()),
        "GOAWAY" => Control::GoAway {
            reason: fields.text("reason"),
            delay: fields.delay(),
            close_in: fields.duration("close_in_ms"),
            endpoint: fields.has("endpoint").then(|| fields.text("endpoint")),
        },
        "GAP" => Control::Gap {
            first: fields.integer("first"),
            count: fields.integer("count"),
            cause: match fields.text("cause").as_str() {
                "overflow" => GapCause::Overflow,
                "coalesced" => GapCause::Coalesced,
                other => panic!("{other}"),
            },
        },
        "END" => Control::End {
            code: fields.integer("code"),
            reason: fields.text("reason"),
            acknowledged: fields.integer("acknowledged"),
            delivered: fields.integer("delivered"),
        },
        "AUTH" => Control::Auth { credentials: Credentials(fields.bytes("credentials")) },
        "AUTH_RESULT" => Control::AuthResult {
            accepted: fields.flag("accepted"),
            expires_in: fields.duration("expires_in_ms"),
        },
        "VOLATILE" => Control::Volatile(message_from_json(fields.0)),
        "REFUSE" => Control::Refuse {
            code: fields.integer("code"),
            temporary: fields.flag("temporary"),
            delay: fields.delay(),
            account: fields.account(),
        },
        "REPLACED" => Control::Replaced { after: fields.integer("after"), count: fields.integer("count") },
        other => panic!("no message is called {other}"),
    }
}

pub(crate) fn message_from_json(value: &Value) -> Message {
    match value.get("text") {
        Some(text) => Message::text(text.as_str().unwrap()),
        None => Message::Binary(Fields(value).bytes("binary")),
    }
}

/// The fields of one message, which are all there.
pub(crate) struct Fields<'a>(pub(crate) &'a Value);

impl Fields<'_> {
    pub(crate) fn integer(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or_else(|| panic!("{name} in {}", self.0))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.0[name].as_str().unwrap_or_else(|| panic!("{name} in {}", self.0)).to_owned()
    }

    pub(crate) fn duration(&self, name: &str) -> Duration {
        Duration::from_millis(self.integer(name))
    }

    pub(crate) fn delay(&self) -> Delay {
        let ends = &self.0["delay_ms"];
        let end = |index: usize| Duration::from_millis(ends[index].as_u64().unwrap());
        Delay { min: end(0), max: end(1) }
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0[name].as_bool().unwrap_or_else(|| panic!("{name} in {}", self.0))
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }

    fn bytes(&self, name: &str) -> Bytes {
        unhex(&self.text(name))
    }

    pub(crate) fn array<const N: usize>(&self, name: &str) -> [u8; N] {
        self.bytes(name).as_ref().try_into().unwrap()
    }

    pub(crate) fn object(&self, name: &str) -> Option<Fields<'_>> {
        self.0.get(name).map(Fields)
    }

    fn window(&self) -> Option<Window> {
        self.window_called("window")
    }

    pub(crate) fn window_called(&self, name: &str) -> Option<Window> {
        let window = self.0.get(name)?;
        Some(Window { messages: window[0].as_u64()?, bytes: window[1].as_u64()? })
    }

    pub(crate) fn account(&self) -> Option<Account> {
        self.object("account").map(|account| Account {
            acknowledged: account.integer("acknowledged"),
            delivered: account.integer("delivered"),
            first_lost: account.integer("first_lost"),
            count: account.integer("count"),
            cause: account.cause(),
        })
    }

    pub(crate) fn cause(&self) -> LossCause {
        match self.text("cause").as_str() {
            "unknown" => LossCause::Unknown,
            "expired" => LossCause::Expired,
            "ended" => LossCause::Ended,
            "evicted" => LossCause::Evicted,
            "restarted" => LossCause::Restarted,
            "replaced" => LossCause::Replaced,
            other => panic!("{other}"),
        }
    }
}

pub(crate) fn account_to_json(account: Account) -> Value {
    json!({
        "acknowledged": account.acknowledged,
        "delivered": account.delivered,
        "first_lost": account.first_lost,
        "count": account.count,
        "cause": cause_to_json(account.cause),
    })
}

fn window_to_json(window: Window) -> Value {
    json!([window.messages, window.bytes])
}

pub(crate) fn delay_to_json(delay: Delay) -> Value {
    json!([millis(delay.min), millis(delay.max)])
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}
