//! What comes to a peer listener and is no node: it is dropped and counted, and no client notices.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::thread::spawn;

use super::rounds::{Cluster, NAME, Size};
use super::rows::{self, Allowed, Must, row};
use super::stage::{LIMIT, Stage};
use crate::Result;
use crate::engines::Program;

/// How often each stranger comes, all at once.
const TIMES: usize = 20;
/// Returns the table of nodes: a line for each node id, then one with its field in hexadecimal digits.
const TABLE: &str = "local lines = redis.call('HGETALL', KEYS[1]) \
     for at = 2, #lines, 2 do \
       lines[at] = (lines[at]:gsub('.', function(c) return string.format('%02x', c:byte()) end)) end \
     return lines";

/// A node as the table has it.
struct Listed {
    node: Vec<u8>,
    listener: SocketAddr,
}

/// Connections that bring garbage, nothing, or a wrong key, while clients work and are cut off.
pub(super) fn strangers(program: &Program, size: &Size) -> Result<()> {
    let cluster = Cluster::start(program, "strangers-engine")?;
    let mut stage = Stage::set(&size.setup("strangers", 2, &cluster.flags(&[])))?;
    let table = cluster.server()?.run(&["EVAL", TABLE, "1", &format!("mainstay:{NAME}:nodes")])?;
    let nodes = parse(&table)?;
    let mut visits = Vec::new();
    for node in &nodes {
        for (what, bytes, ends) in calls(&node.node) {
            for _ in 0..TIMES {
                let (listener, bytes) = (node.listener, bytes.clone());
                visits.push((
                    what,
                    spawn(move || visit(listener, &bytes, ends).map_err(|error| error.to_string())),
                ));
            }
        }
    }
    stage.cut_and_wait(size.clients)?;
    let (mut came, mut answered) = (0, 0);
    for (what, visit) in visits {
        let answer = visit.join().map_err(|_| "a visit panicked")?;
        let answer = answer.map_err(|error| format!("{what}: the peer listener did not drop it: {error}"))?;
        came += 1;
        answered += u64::from(answer > 0);
    }
    stage.cut_and_wait(size.clients)?;
    let counted = stage.nodes.iter().map(|node| node.metric(DROPPED)).sum::<Result<u64>>()?;
    let verdict = stage.close()?;
    let mut rows = rows::of(&verdict, &Allowed::NOTHING);
    rows.push(row("strangers at peer listeners", came, Must::BeAtLeast(1)));
    rows.push(row("... that got an answer", answered, Must::Be(0)));
    // On a busy machine a node gives up another one that has not read its HELLO within a second; that is counted there, too.
    rows.push(row("... that the nodes counted", counted, Must::BeAtLeast(came)));
    rows::judge(&format!("{:?}: garbage and wrong keys at the peer listeners", program.brand), &rows)
}

/// The metric that counts what a peer listener dropped, by reason.
const DROPPED: &str = "mainstay_peer_dropped_total";

/// What a stranger sends, and whether it ends its side then.
fn calls(node: &[u8]) -> Vec<(&'static str, Vec<u8>, bool)> {
    let garbage: Vec<u8> = (0..5_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let head = head_with_a_wrong_key(node);
    vec![
        ("garbage", garbage, false),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: node\r\n\r\n".to_vec(), false),
        ("a head of another version", b"MSTN\x02\0\0\0\x05hello".to_vec(), false),
        ("a head longer than 128 KiB", b"MSTN\x01\x00\x01\xff\xf8".to_vec(), false),
        ("a head that ends in its middle", head[..20].to_vec(), true),
        ("a head that does not go on", head[..20].to_vec(), false),
        ("nothing", Vec::new(), false),
        ("a wrong key", head, false),
    ]
}

/// As conformance/vectors/cluster.json has it: magic, version, length, both node ids, key, path, principal, address.
fn head_with_a_wrong_key(node: &[u8]) -> Vec<u8> {
    let mut body = vec![8];
    body.extend([0xa1; 8]);
    body.push(8);
    body.extend(node);
    body.push(16);
    body.extend([0x5c; 16]);
    body.extend(b"\x05/chat\x00\x04\x7f\x00\x00\x01\x80\x00\xd4\x31");
    let length = (body.len() as u32).to_be_bytes();
    [b"MSTN\x01", &length[..], &body].concat()
}

/// Returns how many bytes the peer listener sent before it ended the connection.
fn visit(listener: SocketAddr, bytes: &[u8], ends: bool) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect(listener)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let _ = stream.write_all(bytes); // it may be gone already
    if ends {
        stream.shutdown(Shutdown::Write)?;
    }
    let (mut buffer, mut count) = ([0; 1024], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(count),
            Ok(read) => count += read,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(count),
            Err(error) => return Err(error),
        }
    }
}

fn parse(table: &str) -> Result<Vec<Listed>> {
    let lines: Vec<Vec<u8>> =
        table.lines().map(bytes_of).collect::<Option<_>>().ok_or("no hexadecimal digits")?;
    let listed = lines.chunks(2).map(|pair| match pair {
        [node, field] if node.len() == 8 => {
            Some(Listed { node: node.clone(), listener: listener_of(field)? })
        }
        _ => None,
    });
    listed.collect::<Option<_>>().ok_or_else(|| format!("not a table of nodes: {table}").into())
}

/// The address in a field of the table: version 1, the address with its length, the port.
fn listener_of(field: &[u8]) -> Option<SocketAddr> {
    let (&[version, length, a, b, c, d], rest) = field.split_first_chunk()?;
    let port = match rest.first()? >> 6 {
        1 => u32::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?) & 0x3fff),
        2 => u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) & 0x3fff_ffff,
        _ => u32::from(*rest.first()?),
    };
    let address = Ipv4Addr::new(a, b, c, d);
    (version == 1 && length == 4).then(|| SocketAddr::from((address, port as u16)))
}

fn bytes_of(digits: &str) -> Option<Vec<u8>> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_as_the_vectors_write_it() {
        let field = "01040a0000075b5810000102030405060708090a0b0c0d0e0f08c3c3c3c3c3c3c3c305";
        let nodes = parse(&format!("a1a1a1a1a1a1a1a1\n{field}\n")).unwrap();
        assert_eq!(
            (nodes[0].node.as_slice(), nodes[0].listener),
            (&[0xa1; 8][..], "10.0.0.7:7000".parse().unwrap())
        );
        assert!(parse("a1a1\n00\n").is_err());
    }

    #[test]
    fn a_head_with_a_wrong_key_is_a_whole_head() {
        let head = head_with_a_wrong_key(&[0xb2; 8]);
        assert_eq!(&head[..9], b"MSTN\x01\x00\x00\x00\x33");
        assert_eq!(head.len(), 9 + 0x33);
    }
}
