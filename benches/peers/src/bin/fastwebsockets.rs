//! fastwebsockets behind hyper's upgrade. Its `read_frame` is not cancel safe, so reading, the heartbeat and the room
//! are separate loops in one task, which share the writing half.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use fastwebsockets::{FragmentCollectorRead, Frame, OpCode, Payload, WebSocketError, upgrade};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use peers::{Flags, ROOM, accept, beat, next};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, broadcast};

type Room = broadcast::Sender<(OpCode, Bytes)>;

#[tokio::main]
async fn main() {
    let flags = Flags::read();
    let listener = TcpListener::bind(&flags.listen).await.unwrap();
    let room: Room = broadcast::channel(ROOM).0;
    loop {
        let stream = accept(&listener).await;
        let (interval, room) = (flags.interval, room.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| upgraded(request, interval, room.clone()));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

async fn upgraded(
    mut request: Request<Incoming>,
    interval: Duration,
    room: Room,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let room = (request.uri().path() == "/broadcast").then_some(room);
    let Ok((response, socket)) = upgrade::upgrade(&mut request) else {
        return Ok(Response::builder().status(400).body(Empty::new()).unwrap());
    };
    tokio::spawn(serve(socket, interval, room));
    Ok(response)
}

async fn serve(socket: upgrade::UpgradeFut, interval: Duration, room: Option<Room>) -> Result<(), WebSocketError> {
    let mut socket = socket.await?;
    socket.set_auto_close(true);
    let (read, write) = socket.split(tokio::io::split);
    let (mut read, write, alive) = (FragmentCollectorRead::new(read), Mutex::new(write), AtomicBool::new(true));
    let mut messages = room.as_ref().map(|room| room.subscribe());
    let reading = async {
        loop {
            let mut answer = async |frame| write.lock().await.write_frame(frame).await;
            let frame = read.read_frame(&mut answer).await?;
            alive.store(true, Relaxed);
            match (frame.opcode, &room) {
                (OpCode::Text | OpCode::Binary, None) => {
                    write.lock().await.write_frame(Frame::new(true, frame.opcode, None, frame.payload)).await?;
                }
                (OpCode::Text | OpCode::Binary, Some(room)) => {
                    let _ = room.send((frame.opcode, Bytes::from(Vec::from(frame.payload))));
                }
                (OpCode::Close, _) => return Ok::<(), WebSocketError>(()),
                _ => {}
            }
        }
    };
    let hearing = async {
        while let Some((opcode, payload)) = next(&mut messages).await {
            write.lock().await.write_frame(Frame::new(true, opcode, None, Payload::Borrowed(&payload))).await?;
        }
        Ok(())
    };
    let beating = async {
        let mut beat = beat(interval);
        loop {
            beat.tick().await;
            if !alive.swap(false, Relaxed) {
                return Ok(());
            }
            write.lock().await.write_frame(Frame::new(true, OpCode::Ping, None, Payload::Borrowed(&[]))).await?;
        }
    };
    tokio::select! {
        done = reading => done,
        done = hearing => done,
        done = beating => done,
    }
}
