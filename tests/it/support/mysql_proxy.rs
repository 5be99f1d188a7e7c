//! A proxy in front of MySQL that injects faults: it answers commands with error codes, closes connections, stops answering on
//! them, and refuses new ones. It reads the packets of the protocol, so the URL of its clients says `ssl-mode=disabled`.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use reqwest::Url;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

/// COM_QUERY, COM_STMT_PREPARE, COM_STMT_EXECUTE: the client waits for an answer, which may be an error.
const COMMANDS: [u8; 3] = [0x03, 0x16, 0x17];

/// What happens to a command.
#[derive(Clone, Copy, Debug)]
enum Fault {
    Code(u16),
    Cut,
    Silence,
}

/// Runs until it is dropped.
pub(crate) struct MySqlProxy {
    url: String,
    trouble: watch::Sender<bool>,
    _accepting: AbortOnDropHandle<()>,
}

struct Shared {
    server: String,
    trouble: watch::Receiver<bool>,
    random: Random,
}

impl MySqlProxy {
    /// Starts a proxy in front of this database. The same seed draws the same faults if the clients do the same.
    pub(crate) async fn start(database_url: &str, seed: u64) -> Self {
        let mut url = Url::parse(database_url).unwrap();
        let server = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(3306));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(listener.local_addr().unwrap().port())).unwrap();
        url.set_query(Some("ssl-mode=disabled"));
        let (trouble, has_trouble) = watch::channel(false);
        let shared = Arc::new(Shared { server, trouble: has_trouble, random: Random(AtomicU64::new(seed)) });
        let accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, shared)));
        Self { url: url.into(), trouble, _accepting: accepting }
    }

    /// The URL for clients.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Begins or ends the faults. Silent connections are closed when the faults end.
    pub(crate) fn make_trouble(&self, trouble: bool) {
        self.trouble.send_replace(trouble);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if *shared.trouble.borrow() && shared.random.below(10) < 3 {
            continue; // refused: closed before the first byte
        }
        connections.spawn(forward(client, shared.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Forwards one connection until either end, or a fault, closes it.
async fn forward(client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let server = TcpStream::connect(&shared.server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    // Answers and injected errors never mix: a client sends a command after it has read the last answer completely.
    let (errors, mut error) = tokio::sync::mpsc::channel::<Vec<u8>>(1);
    let answers = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            tokio::select! {
                read = from_server.read(&mut buffer) => match read? {
                    0 => return Ok(()),
                    n => to_client.write_all(&buffer[..n]).await?,
                },
                packet = error.recv() => match packet {
                    Some(packet) => to_client.write_all(&packet).await?,
                    None => { copy(&mut from_server, &mut to_client).await?; return Ok(()) },
                },
            }
        }
    };
    tokio::select! {
        ended = answers => ended,
        ended = commands(from_client, to_server, errors, &shared) => ended,
    }
}

async fn commands(
    mut from_client: OwnedReadHalf,
    mut to_server: OwnedWriteHalf,
    errors: tokio::sync::mpsc::Sender<Vec<u8>>,
    shared: &Shared,
) -> io::Result<()> {
    let mut trouble = shared.trouble.clone();
    loop {
        let mut header = [0; 4];
        from_client.read_exact(&mut header).await?;
        let length = u32::from_le_bytes([header[0], header[1], header[2], 0]) as usize;
        let mut payload = vec![0; length];
        from_client.read_exact(&mut payload).await?;
        // A command is the first packet of a sequence; the packets of a login are not.
        let is_command = header[3] == 0 && payload.first().is_some_and(|byte| COMMANDS.contains(byte));
        match is_command.then(|| shared.fault()).flatten() {
            None => {
                to_server.write_all(&header).await?;
                to_server.write_all(&payload).await?;
            }
            Some(Fault::Code(code)) => {
                let _ = errors.send(error_packet(code)).await;
            }
            Some(Fault::Cut) => return Ok(()),
            Some(Fault::Silence) => {
                let _ = trouble.wait_for(|trouble| !trouble).await;
                return Ok(());
            }
        }
    }
}

impl Shared {
    /// About half of the commands are forwarded.
    fn fault(&self) -> Option<Fault> {
        if !*self.trouble.borrow() {
            return None;
        }
        match self.random.below(100) {
            0..40 => Some(Fault::Code(self.code())),
            40..46 => Some(Fault::Cut),
            46..48 => Some(Fault::Silence),
            _ => None,
        }
    }

    /// Any code in the ranges of the server's error messages, but those that blame the data: a command that is answered with one
    /// is rightly undecidable.
    fn code(&self) -> u16 {
        let codes = [(1000, 928), (3000, 1200)];
        loop {
            let (first, count) = codes[self.random.below(2) as usize];
            let code = (first + self.random.below(count)) as u16;
            if !CODES_OF_THE_DATA.contains(&code) {
                return code;
            }
        }
    }
}

/// NULL, duplicates, foreign keys, ranges, types, checks, triggers, JSON: `src/store/sqlx_error.rs` takes them for permanent.
const CODES_OF_THE_DATA: [u16; 37] = [
    1048, 1062, 1169, 1216, 1217, 1264, 1265, 1292, 1366, 1367, 1406, 1411, 1451, 1452, 1557, 1586, 1644,
    1690, 1761, 1762, 3140, 3141, 3144, 3146, 3150, 3156, 3157, 3158, 3665, 3666, 3667, 3668, 3669, 3819,
    3854, 3903, 3904,
];

/// An ERR packet, as the answer to a command.
fn error_packet(code: u16) -> Vec<u8> {
    let mut payload = vec![0xff];
    payload.extend(code.to_le_bytes());
    payload.extend(format!("#HY000injected error {code}").bytes());
    let length = (payload.len() as u32).to_le_bytes();
    let mut packet = vec![length[0], length[1], length[2], 1];
    packet.append(&mut payload);
    packet
}

/// splitmix64: the same seed, the same faults.
struct Random(AtomicU64);

impl Random {
    fn below(&self, limit: u64) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
