"""What an answer says, as the label ``rcode`` should have it. dnspython reads it."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rcode


def outcome(answer: dns.message.Message) -> str:
    rcode = answer.rcode()
    if rcode == dns.rcode.BADVERS:
        return "BADVERS"
    if rcode != dns.rcode.NOERROR or answer.flags & dns.flags.TC:
        return dns.rcode.to_text(rcode)
    (question,) = answer.question
    return "NOERROR" if any(found.rdtype == question.rdtype for found in answer.answer) else "NODATA"
