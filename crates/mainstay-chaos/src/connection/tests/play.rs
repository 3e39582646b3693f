//! A driver without sockets: both ends read everything at once, unless a test says otherwise.

use std::time::Duration;

use crate::connection::{Action, Connection};
use crate::event::{FaultId, Lift, What};
use crate::fault::{Fault, Side};

pub(super) const REQUEST: &[u8] =
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
pub(super) const SWITCHED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

pub(super) struct Play {
    pub(super) machine: Connection,
    pub(super) now: Duration,
    /// What each side received, by its writer; the sizes of the single writes; and whether its stream has ended, or was reset.
    pub(super) got: [Vec<u8>; 2],
    pub(super) writes: [Vec<usize>; 2],
    pub(super) ends: [Option<&'static str>; 2],
    pub(super) has_dialled: bool,
    pub(super) has_appeared: bool,
    pub(super) notes: Vec<(Duration, What)>,
    lifts_at: Option<Duration>,
}

impl Play {
    /// A connection whose upstream is connected.
    pub(super) fn begin() -> Self {
        let mut play = Self::of(Connection::new(1, Duration::ZERO, 7));
        play.settle();
        play
    }

    pub(super) fn of(machine: Connection) -> Self {
        Self {
            machine,
            now: Duration::ZERO,
            got: [Vec::new(), Vec::new()],
            writes: [Vec::new(), Vec::new()],
            ends: [None; 2],
            has_dialled: false,
            has_appeared: false,
            notes: Vec::new(),
            lifts_at: None,
        }
    }

    /// A WebSocket; what was received so far is forgotten.
    pub(super) fn websocket() -> Self {
        let mut play = Self::begin();
        play.up(REQUEST);
        play.down(SWITCHED);
        play.got = [Vec::new(), Vec::new()];
        play
    }

    pub(super) fn up(&mut self, bytes: &[u8]) {
        self.write(Side::Client, bytes);
    }

    pub(super) fn down(&mut self, bytes: &[u8]) {
        self.write(Side::Upstream, bytes);
    }

    /// `side` writes what the machine has room for; the test fails if that is less than all.
    pub(super) fn write(&mut self, side: Side, bytes: &[u8]) {
        assert!(self.machine.room(side) >= bytes.len(), "there is no room for {} bytes", bytes.len());
        self.machine.handle_bytes(self.now, side, bytes);
        self.settle();
    }

    pub(super) fn end(&mut self, side: Side) {
        self.machine.handle_end(self.now, side);
        self.settle();
    }

    pub(super) fn reset(&mut self, side: Side) {
        self.machine.handle_reset(self.now, side);
        self.settle();
    }

    pub(super) fn inject(&mut self, fault: Fault) {
        self.machine.handle_fault(self.now, &fault, FaultId(1));
        self.settle();
    }

    pub(super) fn inject_for(&mut self, fault: Fault, milliseconds: u64) {
        self.inject(fault);
        self.lifts_at = Some(self.now + Duration::from_millis(milliseconds));
    }

    pub(super) fn lift(&mut self) {
        self.machine.handle_lift(self.now, FaultId(1), Lift::Command);
        self.settle();
    }

    /// Lets time pass, from one of the machine's times to the next.
    pub(super) fn wait(&mut self, milliseconds: u64) {
        let until = self.now + Duration::from_millis(milliseconds);
        for _ in 0..1_000_000 {
            let next = self.machine.poll_timeout(self.now).into_iter().chain(self.lifts_at).min();
            let Some(at) = next.filter(|at| *at <= until) else {
                self.now = until;
                return self.settle();
            };
            self.now = self.now.max(at);
            if self.lifts_at.is_some_and(|lifts_at| lifts_at <= self.now) {
                self.lifts_at = None;
                self.lift();
            }
            self.settle();
        }
        panic!("time stands still at {:?}", self.now);
    }

    pub(super) fn over(&self) -> Option<&'static str> {
        self.machine.over()
    }

    pub(super) fn note_names(&self) -> Vec<&'static str> {
        self.notes.iter().map(|(_, what)| what.name()).collect()
    }

    fn settle(&mut self) {
        loop {
            self.machine.handle_timeout(self.now);
            let mut has_moved = false;
            for side in Side::BOTH {
                let bytes = self.machine.poll_write(self.now, side).to_vec();
                if !bytes.is_empty() {
                    has_moved = true;
                    self.writes[side as usize].push(bytes.len());
                    self.got[side as usize].extend_from_slice(&bytes);
                    self.machine.wrote(self.now, side, bytes.len());
                }
            }
            self.machine.handle_silence(self.now);
            while let Some(action) = self.machine.poll_action() {
                has_moved = true;
                self.act(action);
            }
            while let Some(note) = self.machine.poll_note() {
                self.notes.push((self.now, note));
            }
            if !has_moved {
                return;
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Dial => {
                self.has_dialled = true;
                self.machine.handle_connected(self.now, What::Unreadable);
            }
            Action::Finish(side) => self.ends[side as usize] = Some("fin"),
            Action::Reset(side) => self.ends[side as usize] = Some("reset"),
            Action::Appear => self.has_appeared = true,
        }
    }
}

/// Returns a frame: unmasked, or with a mask.
pub(super) fn frame(opcode: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    let masked = if mask.is_some() { 0x80 } else { 0 };
    match payload.len() {
        length @ 0..126 => bytes.push(masked | length as u8),
        length @ 126..65_536 => {
            bytes.push(masked | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(masked | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(mask.unwrap_or_default().iter().take(if mask.is_some() { 4 } else { 0 }));
    let key = mask.unwrap_or_default();
    bytes.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ key[index % 4]));
    bytes
}

pub(super) fn text(payload: &str) -> Vec<u8> {
    frame(1, payload.as_bytes(), Some([1, 2, 3, 4]))
}
