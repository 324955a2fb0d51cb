//! A consumer of the published protocol in a program of your own.
//!
//! `embed-consumer FOLDER` imports from the `embed-owner FOLDER` beside it, and ends when it holds
//! what the owner offers. Without a folder it has its owner in the same process.

use std::time::Duration;

use hamlet_protocol::sdk::{Consumer, ConsumerEvent, Owner};

#[path = "../embedding/mod.rs"]
mod embedding;
use embedding::{Failure, address_file, folder_argument, identity, make_certificates, peer, rules, service};

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let temporary = tempfile::tempdir()?;
    let given = folder_argument();
    let folder = given.as_deref().unwrap_or(temporary.path());
    let (address, _owner) = match given {
        Some(_) => (owner_beside(folder).await?, None),
        None => {
            let owner = owner_within(folder).await?;
            (owner.address().ok_or("it listens")?.to_string(), Some(owner))
        }
    };

    // The consumer: who it is, where its peer is, what it takes.
    let consumer: Consumer = Consumer::builder(identity(folder, "shop")?)
        .peer(peer(folder, "bank")?.at(address))
        .import_rules(rules()?)
        .program("embed-consumer 1.0")
        .start()
        .await?;
    let mut events = consumer.watch();
    while let Some(event) = events.next().await {
        match event {
            ConsumerEvent::Connected { peer } => println!("{peer}: connected"),
            ConsumerEvent::Upserted { peer, key, value } => println!("{peer}: {key} is {}", value.fqdn),
            ConsumerEvent::Deleted { peer, key } => println!("{peer}: {key} is gone"),
            ConsumerEvent::Down { peer, reason } => println!("{peer}: not connected: {reason}"),
            ConsumerEvent::Proven { peer, count } => {
                println!("{peer}: offers {count}, and we hold exactly that");
                break;
            }
            other => println!("{other:?}"),
        }
    }
    for entry in consumer.entries() {
        println!("in force: {} from {}", entry.key, entry.peer);
    }
    consumer.stop().await;
    Ok(())
}

/// Waits until the owner in the other terminal has said where it is.
async fn owner_beside(folder: &std::path::Path) -> Result<String, Failure> {
    loop {
        match std::fs::read_to_string(address_file(folder)) {
            Ok(address) => return Ok(address),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// An owner of our own.
async fn owner_within(folder: &std::path::Path) -> Result<Owner, Failure> {
    make_certificates(folder)?;
    let builder = Owner::builder(identity(folder, "bank")?).peer(peer(folder, "shop")?);
    let owner: Owner = builder.listen("127.0.0.1:0").start().await?;
    for name in ["accounts", "loans", "rates"] {
        owner.put(name, &service(name)?)?;
    }
    owner.ready();
    Ok(owner)
}
