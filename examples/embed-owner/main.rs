//! An owner of the published protocol in a program of your own.
//!
//! `embed-owner FOLDER` offers three services until Ctrl-C; run `embed-consumer FOLDER` beside it.
//! Without a folder it has its consumer in the same process, and ends when that one holds the same.

use hamlet_protocol::sdk::{Consumer, Owner, OwnerEvent};

#[path = "../embedding/mod.rs"]
mod embedding;
use embedding::{Failure, address_file, folder_argument, identity, make_certificates, peer, rules, service};

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let temporary = tempfile::tempdir()?;
    let given = folder_argument();
    let folder = given.as_deref().unwrap_or(temporary.path());
    make_certificates(folder)?;
    // Of an earlier run.
    let _ = std::fs::remove_file(address_file(folder));

    // The owner: who it is, whom it serves, where it listens.
    let owner: Owner = Owner::builder(identity(folder, "bank")?)
        .peer(peer(folder, "shop")?)
        .listen("127.0.0.1:0")
        .program("embed-owner 1.0")
        .start()
        .await?;
    let mut events = owner.observe();
    for name in ["accounts", "loans", "rates"] {
        owner.put(name, &service(name)?)?;
    }
    owner.ready();

    let address = owner.address().ok_or("it listens")?.to_string();
    println!("offering {} services on {address}", owner.len());
    let alone = match given {
        Some(_) => {
            // Whole or not at all, for a consumer that waits for it.
            let file = address_file(folder);
            std::fs::write(file.with_extension("new"), &address)?;
            std::fs::rename(file.with_extension("new"), file)?;
            None
        }
        None => {
            let bank = peer(folder, "bank")?.at(address);
            let consumer = Consumer::builder(identity(folder, "shop")?).peer(bank).import_rules(rules()?);
            Some(consumer.start().await?)
        }
    };

    loop {
        let event = tokio::select! {
            event = events.next() => event,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(event) = event else { break };
        match event {
            OwnerEvent::Connected { peer } => println!("{peer}: connected"),
            OwnerEvent::Acknowledged { peer, key, .. } => println!("{peer}: took {key}"),
            OwnerEvent::Refused { peer, key, reason, .. } => println!("{peer}: refused {key}: {reason}"),
            OwnerEvent::Proven { peer, refused, .. } => {
                println!("{peer}: holds all that we offer, {refused} of it refused");
                if alone.is_some() {
                    break;
                }
            }
            OwnerEvent::Down { peer, reason } => println!("{peer}: not connected: {reason}"),
            other => println!("{other:?}"),
        }
    }
    let _ = std::fs::remove_file(address_file(folder));
    owner.stop().await;
    Ok(())
}
