//! TCP to the backend, until the library's connector is there.

use std::io;

use http::Uri;
use tokio::net::TcpStream;

pub(crate) type Stream = TcpStream;

#[derive(Clone)]
pub(crate) struct Connector;

impl Connector {
    pub(crate) async fn connect(&self, url: &Uri) -> io::Result<Stream> {
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, url.port_u16().unwrap_or(80))).await?;
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}
