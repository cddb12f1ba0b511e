//! How members reach each other: within a process, or through a hub.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::Sender;

use anyhow::{Context, Result};

#[derive(Debug, Clone, Copy)]
pub(super) struct Message {
    pub(super) from: usize,
    pub(super) amount: u64,
    pub(super) sent_us: u64,
}

/// How members reach each other.
#[derive(Debug)]
pub(super) enum Post {
    /// In one process.
    Channels(Vec<Sender<Message>>),
    /// Through a [`hub`].
    Wire(TcpStream),
}

/// Bytes of a message on the wire: to whom, from whom, amount, when it was sent; u64, little-endian.
const WIRE_BYTES: usize = 32;

impl Post {
    pub(super) fn send(&self, to: usize, message: Message) -> Result<()> {
        match self {
            // A member that has stopped needs it no more.
            Self::Channels(peers) => drop(peers.get(to).context("a member")?.send(message)),
            Self::Wire(stream) => {
                let words = [to as u64, message.from as u64, message.amount, message.sent_us];
                let mut stream = stream;
                stream.write_all(&words.map(u64::to_le_bytes).concat())?;
            }
        }
        Ok(())
    }
}

/// The words of a message; `None` at the end of the stream.
pub(super) fn from_wire(stream: &mut TcpStream) -> Option<[u64; 4]> {
    let mut bytes = [0; WIRE_BYTES];
    stream.read_exact(&mut bytes).ok()?;
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_le_bytes(*word)).collect::<Vec<_>>().try_into().ok()
}

/// Takes the connections of so many members (each says its number first) and passes messages on, until all are gone.
///
/// # Errors
/// When a member does not say who it is.
pub fn hub(listener: &TcpListener, members: usize) -> Result<()> {
    let mut streams: Vec<Option<TcpStream>> = (0..members).map(|_| None).collect();
    for _ in 0..members {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut number = [0; 8];
        stream.read_exact(&mut number)?;
        let place = streams.get_mut(usize::try_from(u64::from_le_bytes(number))?);
        *place.context("a member's number")? = Some(stream);
    }
    let streams: Vec<TcpStream> =
        streams.into_iter().collect::<Option<_>>().context("two with one number")?;
    let outs: Vec<_> =
        streams.iter().map(|stream| stream.try_clone().map(Mutex::new)).collect::<Result<_, _>>()?;
    std::thread::scope(|scope| {
        for mut stream in streams {
            let outs = &outs;
            scope.spawn(move || {
                while let Some(words) = from_wire(&mut stream) {
                    let to = usize::try_from(words[0]).ok().and_then(|to| outs.get(to));
                    let Some(Ok(mut out)) = to.map(Mutex::lock) else { return };
                    // A member that is gone needs it no more.
                    let _ = out.write_all(&words.map(u64::to_le_bytes).concat());
                }
            });
        }
    });
    Ok(())
}
