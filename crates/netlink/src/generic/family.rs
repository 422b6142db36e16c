//! The number that the kernel gave to a family of this name.

use rustix::io::Errno;

use super::attribute::{Message, attributes_of};
use crate::wire::Attributes;
use crate::{Conn, NetlinkError, Request};

/// `GENL_ID_CTRL` and its numbers (linux/genetlink.h).
const CONTROL: u16 = 0x10;
const GETFAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const CONTROL_VERSION: u8 = 1;

/// Asks for the family `name`; `None` when the kernel has none of that name.
///
/// The kernel may load a module to answer; nothing is loaded from here.
///
/// # Errors
/// When the kernel refuses for another reason or its answer cannot be read.
pub fn family_id(conn: &mut Conn, name: &str) -> Result<Option<u16>, NetlinkError> {
    let what = format!("look up the generic netlink family {name}");
    let payload = Message::new(GETFAMILY, CONTROL_VERSION)
        .text(FAMILY_NAME, name)
        .finish();
    let reply = match conn.request(&Request {
        kind: CONTROL,
        flags: 0,
        payload,
        what: what.clone(),
    }) {
        Ok(reply) => reply,
        Err(error) if error.has_errno(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let id = reply.and_then(|r| number(&r.payload));
    id.map(Some)
        .ok_or_else(|| NetlinkError::malformed(what, "an answer without the family's number"))
}

fn number(payload: &[u8]) -> Option<u16> {
    let (_, value) = Attributes(attributes_of(payload)).find(|(kind, _)| *kind == FAMILY_ID)?;
    Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_found_and_junk_is_not() {
        // as the kernel answers for IPVS: version 2, name, number 0x16
        let answer = b"\x01\x02\0\0\x09\0\x02\0IPVS\0\0\0\0\x06\0\x01\0\x16\0\0\0";
        assert_eq!(number(answer), Some(0x16));
        for end in 0..answer.len() - 3 {
            assert_eq!(number(&answer[..end]), None, "{end}");
        }
    }
}
