//! Commands in both encodings: what they hold comes out whole for everybody, and in one line where
//! lines separate messages.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_engine::protocol::centrifuge::{
    ClientInfo, Data, Encoding, Publication, Request, parse_commands, parse_emulation,
    parse_uni_connect,
};
use tidegate_engine::protocol::close::Close;
use tidegate_engine::protocol::format::{ALL, Format};
use tidegate_engine::protocol::sse::LastEventId;
use tidegate_fuzz::parameters;

const PROTOBUF: u8 = 1;

fn read(encoding: Encoding, message: &[u8]) {
    match parse_commands(encoding, message) {
        Ok(commands) => {
            assert!(!commands.is_empty() && commands.len() <= message.len());
            // Text may follow text; lengths say where Protobuf ends.
            let separator: &[u8] = match encoding {
                Encoding::Json if message.ends_with(b"\n") => b"",
                Encoding::Json => b"\n",
                Encoding::Protobuf => b"",
            };
            let twice = [message, separator, message].concat();
            let expected = [commands.clone(), commands.clone()].concat();
            assert_eq!(parse_commands(encoding, &twice), Ok(expected));
            for command in &commands {
                if let Request::Publish { channel, data } = &command.request {
                    publish(encoding, channel, data);
                }
            }
        }
        Err(close) => assert_eq!(close, Close::BadRequest),
    }
    if let Some(request) = parse_emulation(encoding, message) {
        let _ = parse_commands(encoding, &request.data);
    }
}

/// Tell everybody what one client has said.
fn publish(encoding: Encoding, channel: &str, data: &[u8]) {
    let info = ClientInfo {
        user: channel,
        ..ClientInfo::default()
    };
    let encoded = info.encode();
    assert_eq!(ClientInfo::parse(&encoded), Some(info));
    for format in ALL.into_iter().filter(|format| *format != Format::Tcp) {
        for data in [Data::Plain(data), Data::Whole(data)] {
            let publication = Publication {
                data,
                json: encoding == Encoding::Json,
                info: &encoded,
                offset: 1,
                tags: b"",
            };
            let framed = format.publication(channel, &publication);
            let is_text = format.encoding() == Encoding::Json;
            assert_eq!(framed.is_ok(), publication.json || !is_text);
            if let (Ok(framed), Format::JsonStream) = (framed, format) {
                let (last, line) = framed.split_last().expect("a line is not empty");
                assert!(*last == b'\n' && !line.contains(&b'\n'));
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((_, flags, message)) = parameters(input) else {
        return;
    };
    if flags & PROTOBUF != 0 {
        read(Encoding::Protobuf, message);
        ClientInfo::parse(message);
    } else {
        read(Encoding::Json, message);
        let _ = parse_uni_connect(message);
        LastEventId::parse(message);
    }
});
