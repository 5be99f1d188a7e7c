//! Passwords are not shown, not even where they are not written as a URL wants them, and not given to who does not show that
//! he is the server; and the database file is its owner's.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Output};

use futures_util::{StreamExt, stream};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    processes::cli::{complaint, directory, run},
    support::harness::{App, Pair},
    support::servers::servers,
};

/// Every character that somebody may type into a password.
fn awkward() -> impl Iterator<Item = char> {
    (b' '..=b'~').map(char::from)
}

#[track_caller]
fn shows_no_secret(output: &Output, url: &str) {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(!said.contains("secret") && !said.contains("top"), "{url}: {said}");
}

/// Port 1: nobody is there.
#[tokio::test]
async fn no_password_of_the_database_is_shown() {
    let directory = directory();
    let passwords =
        awkward().flat_map(|awkward| [format!("top{awkward}secret"), format!("4{awkward}secret")]);
    let runs = stream::iter(passwords).map(async |password| {
        let url = format!("mysql://root:{password}@127.0.0.1:1/antre");
        let output = run(directory.path(), &["migrate"], &[("DATABASE_URL", &url)]).await;
        shows_no_secret(&output, &url);
        assert!(!output.status.success(), "{url}");
        let said = String::from_utf8(output.stderr).unwrap();
        let is_told = said.contains("mysql://127.0.0.1:1/antre") || said.contains("percent-encoded");
        assert!(is_told && said.contains("DATABASE_URL"), "{url}: {said}");
    });
    runs.buffer_unordered(4).collect::<()>().await;
}

#[tokio::test]
async fn a_url_in_a_wrong_place_is_not_repeated_with_its_password() {
    let directory = directory();
    let url = "mysql://root:top#secret@127.0.0.1:1/antre";
    for arguments in [&[url] as &[&str], &["--lanes", url], &["migrate", url], &["--database-ur", url]] {
        let output = run(directory.path(), arguments, &[]).await;
        shows_no_secret(&output, url);
        complaint(&output, 2);
    }
    let equals = format!("--listen-addr={url}");
    shows_no_secret(&run(directory.path(), &[&equals], &[]).await, url);
}

#[tokio::test]
async fn an_unencoded_password_of_the_broker_is_refused() {
    let directory = directory();
    let database = ("DATABASE_URL", "mysql://shop:top-secret@127.0.0.1:1/antre");
    for character in ['#', '?', '/'] {
        for password in [format!("top{character}secret"), format!("4{character}secret")] {
            let url = format!("amqp://shop:{password}@127.0.0.1:1/%2f");
            let output = run(directory.path(), &[], &[database, ("AMQP_URL", &url)]).await;
            shows_no_secret(&output, &url);
            let said = complaint(&output, 2);
            assert!(said.contains("AMQP_URL") && said.contains("percent-encoded"), "{said}");
        }
    }
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn no_password_of_the_broker_is_shown() {
    let place = servers().await.fresh().await;
    let directory = directory();
    let listen = ("LISTEN_ADDR", "127.0.0.1:0");
    let runs = stream::iter(awkward()).map(async |awkward| {
        let url = format!("amqp://shop:top{awkward}secret@127.0.0.1:1/%2f");
        let settings = [listen, ("DATABASE_URL", &place.database_url), ("AMQP_URL", &url)];
        let output = run(directory.path(), &["api"], &settings).await;
        shows_no_secret(&output, &url);
        assert!(!output.status.success(), "{url}");
        let said = String::from_utf8(output.stderr).unwrap();
        let is_told = said.contains("amqp://127.0.0.1:1/%2f") || said.contains("percent-encoded");
        assert!(is_told && said.contains("AMQP_URL"), "{url}: {said}");
    });
    runs.buffer_unordered(4).collect::<()>().await;
}

/// The first packet of a MySQL server that does not encrypt, and asks for the password as it is.
fn greeting() -> Vec<u8> {
    const PROTOCOL_41: u32 = 0x200;
    const SECURE_CONNECTION: u32 = 0x8000;
    const PLUGIN_AUTH: u32 = 0x8_0000;
    let capabilities = (PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH).to_le_bytes();
    let mut payload = vec![10];
    payload.extend(b"8.4.0\0");
    payload.extend([1, 0, 0, 0]); // the connection's number
    payload.extend(b"12345678\0");
    payload.extend(&capabilities[..2]);
    payload.extend([45, 2, 0]); // utf8mb4; autocommit
    payload.extend(&capabilities[2..]);
    payload.push(21);
    payload.extend([0; 10]);
    payload.extend(b"123456789012\0");
    payload.extend(b"mysql_clear_password\0");
    [&[payload.len() as u8, 0, 0, 0], payload.as_slice()].concat()
}

/// What other machines are asked for by default: the URL says it here, because the test's server is on this one.
#[tokio::test]
async fn an_unverified_server_gets_no_password() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let fake = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        client.write_all(&greeting()).await.unwrap();
        let mut said = Vec::new();
        let _ = client.read_to_end(&mut said).await;
        said
    });
    let url = format!("mysql://shop:secret@{address}/antre?ssl-mode=VERIFY_IDENTITY");
    let directory = directory();
    let said = complaint(&run(directory.path(), &["migrate"], &[("DATABASE_URL", &url)]).await, 1);
    for word in ["ssl-ca=", "ssl-mode=REQUIRED", "ssl-mode=DISABLED"] {
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(fake.await.unwrap(), b"", "it received something");
}

/// A server whose certificate nobody vouches for, which is what MySQL makes for itself.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn an_untrusted_certificate_is_named() {
    let place = servers().await.fresh().await;
    let directory = directory();
    let migrate = async |mode: &str| {
        let url = format!("{}?ssl-mode={mode}", place.database_url);
        run(directory.path(), &["migrate"], &[("DATABASE_URL", &url)]).await
    };
    for mode in ["VERIFY_IDENTITY", "VERIFY_CA"] {
        let said = complaint(&migrate(mode).await, 1);
        assert!(said.contains("certificate") && said.contains("ssl-ca="), "{said}");
    }
    for mode in ["REQUIRED", "PREFERRED", "DISABLED"] {
        let output = migrate(mode).await;
        assert!(output.status.success(), "{output:?}");
    }
}

#[track_caller]
fn mode(file: &Path) -> u32 {
    file.metadata().unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn the_database_file_is_private_to_its_owner() {
    let app = App::start(Pair::Embedded).await;
    app.create_stocked("Kaos Polos", 1).await;
    for file in ["antre.db", "antre.db-wal", "antre.db-shm"] {
        assert_eq!(mode(&app.file(file)), 0o600, "{file}");
    }
}

/// Somebody may have chosen it.
#[tokio::test]
async fn the_mode_of_an_existing_database_file_stays_and_is_logged() {
    let directory = directory();
    let file = directory.path().join("antre.db");
    run(directory.path(), &["migrate"], &[]).await;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let output = run(directory.path(), &["migrate"], &[]).await;
    assert!(output.status.success(), "{output:?}");
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(log.contains("chmod 600") && log.contains("antre.db"), "{log}");
    assert_eq!(mode(&file), 0o640);
}
