//! An echo server in the idiom of tokio's examples: a task for each connection, on one thread.
//! Measured with tokio 1.54.1.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

async fn echo(mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match client.read(&mut buffer).await? {
            0 => return Ok(()),
            length => client.write_all(&buffer[..length]).await?,
        }
    }
}

async fn echo_datagrams(udp: UdpSocket) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        if let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            let _ = udp.send_to(&buffer[..length], from).await;
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let port = std::env::args().nth(1).unwrap_or_default();
    let here = format!("127.0.0.1:{port}").parse().map_err(io::Error::other)?;
    let udp = UdpSocket::bind(here).await?;
    socket2::SockRef::from(&udp).set_recv_buffer_size(4 << 20)?;
    tokio::spawn(echo_datagrams(udp));
    let listener = TcpSocket::new_v4()?;
    listener.set_reuseaddr(true)?;
    listener.bind(here)?;
    let listener = listener.listen(4096)?;
    loop {
        if let Ok((client, _)) = listener.accept().await {
            tokio::spawn(echo(client));
        }
    }
}
