//! Both ends for the Autobahn test suite, on blocking sockets with a thread per connection.
//!
//! ```text
//! autobahn server 127.0.0.1:9001               echoes; for `wstest -m fuzzingclient`
//! autobahn client ws://127.0.0.1:9002 AGENT    runs every case of `wstest -m fuzzingserver`
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::{env, error::Error, thread};

use bytes::Buf;
use http::{HeaderMap, HeaderName, HeaderValue, Version};
use mainstay_proto::ws::handshake::{Agreed, Offer, check_request};
use mainstay_proto::ws::{CloseState, Connection, DeflateParams, Incoming, Limits, Role, SendQueue};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
const LIMITS: Limits = Limits { max_message: 16 << 20, max_fragments: 100_000 };

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["server", address] => serve(TcpListener::bind(address)?),
        ["client", url, agent] => run_all_cases(url.trim_start_matches("ws://"), agent),
        _ => Err("usage: autobahn server ADDRESS | autobahn client URL AGENT".into()),
    }
}

fn serve(listener: TcpListener) -> Result<()> {
    for stream in listener.incoming() {
        let stream = BufReader::new(stream?);
        thread::spawn(move || accept(stream).unwrap_or_else(|error| eprintln!("{error}")));
    }
    Ok(())
}

fn accept(mut stream: BufReader<TcpStream>) -> Result<()> {
    let (line, headers) = read_head(&mut stream)?;
    let method = line.split(' ').next().unwrap_or_default().parse()?;
    let accept = check_request(&method, Version::HTTP_11, &headers)?;
    let (headers, agreed) = accept.response(None, Some(DeflateParams::default()));
    write_head(stream.get_mut(), "HTTP/1.1 101 Upgraded", &headers)?;
    echo(stream, Role::Server, &agreed).map(drop)
}

fn run_all_cases(authority: &str, agent: &str) -> Result<()> {
    let cases: u32 = dial(authority, "/getCaseCount")?.parse()?;
    for case in 1..=cases {
        dial(authority, &format!("/runCase?case={case}&agent={agent}"))?;
    }
    dial(authority, &format!("/updateReports?agent={agent}")).map(drop)
}

fn dial(authority: &str, path: &str) -> Result<String> {
    let offer = Offer::new([7; 16], &[], Some(DeflateParams::default()))?;
    let mut headers = offer.headers();
    headers.insert("host", authority.parse()?);
    let mut stream = BufReader::new(TcpStream::connect(authority)?);
    write_head(stream.get_mut(), &format!("GET {path} HTTP/1.1"), &headers)?;
    let (line, headers) = read_head(&mut stream)?;
    let status = line.split(' ').nth(1).unwrap_or_default().parse()?;
    let agreed = offer.check_response(status, &headers)?;
    echo(stream, Role::Client, &agreed)
}

/// Echoes until TCP ends, by FIN or reset, and returns the last message.
fn echo(mut stream: BufReader<TcpStream>, role: Role, agreed: &Agreed) -> Result<String> {
    let mut connection = Connection::new(role, LIMITS, agreed.deflate, [7; 32]);
    let (mut queue, mut buffer, mut last) = (SendQueue::new(), vec![0; 64 * 1024], String::new());
    stream.get_ref().set_nodelay(true)?;
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        let mut input = &mut buffer[..read];
        loop {
            match connection.receive(&mut input) {
                Ok(Some(Incoming::Message(payload))) => {
                    last = String::from_utf8_lossy(&payload).into_owned();
                    connection.send(payload.kind(), &[], &payload.into_bytes(), &mut queue);
                }
                // After each item and not once per turn: the suite counts the Pongs.
                Ok(Some(_)) => connection.flush_replies(&mut queue),
                Ok(None) => break,
                Err(error) => connection.fail(&error, &mut queue),
            }
        }
        stream.get_mut().write_all(&queue.copy_to_bytes(queue.len()))?;
        if connection.state() == CloseState::Closed && role == Role::Server {
            // Half a close: unread input must not turn into a reset that overtakes our Close.
            stream.get_ref().shutdown(Shutdown::Write)?;
        }
    }
    Ok(last)
}

fn read_head(stream: &mut impl BufRead) -> Result<(String, HeaderMap)> {
    let mut lines = stream.take(16 * 1024).lines();
    let first = lines.next().ok_or("no head")??;
    let mut headers = HeaderMap::new();
    while let Some(line) = lines.next().transpose()?
        && let Some((name, value)) = line.split_once(':')
    {
        headers.append(name.parse::<HeaderName>()?, HeaderValue::from_str(value.trim())?);
    }
    Ok((first, headers))
}

fn write_head(stream: &mut impl Write, first: &str, headers: &HeaderMap) -> Result<()> {
    let mut head = format!("{first}\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {}\r\n", value.to_str()?);
    }
    Ok(stream.write_all(format!("{head}\r\n").as_bytes())?)
}
