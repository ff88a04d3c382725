"""Files damaged in the ways that files get damaged, and some in which they are attacked; the same for each seed."""

import pickle
import random
import re
import struct
from collections import Counter

# What is put in place of other text of a header.
DTYPES = (b"F64", b"F32", b"F16", b"BF16", b"I64", b"U8", b"BOOL", b"<f8", b">f4", b"<i4", b"|O", b"|S9", b"nonsense")
NUMBERS = (b"0", b"-1", b"1", b"7", b"9223372036854775807", b"18446744073709551616", b"1e9", b"[]")
NAMES = (b"../../outside", b"/etc/passwd", b"\xff\xfe", b"features")


def mutated(content, random):
    """Return the name of a kind of damage, and a damaged copy."""
    kind = random.choice(KINDS)
    return kind.__name__, kind(bytearray(content), random)


def cut_off(content, random):
    return content[: random.randrange(len(content))]


def one_bit_flipped(content, random):
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    return content


def one_bit_of_the_beginning_flipped(content, random):
    content[random.randrange(min(200, len(content)))] ^= 1 << random.randrange(8)
    return content


def one_bit_of_the_end_flipped(content, random):
    content[-1 - random.randrange(min(120, len(content)))] ^= 1 << random.randrange(8)
    return content


def block_zeroed(content, random):
    start = random.randrange(len(content))
    content[start : start + random.randrange(1, 200)] = bytes(min(random.randrange(1, 200), len(content) - start))
    return content


def block_left_out(content, random):
    start = random.randrange(len(content))
    del content[start : start + random.randrange(1, 100)]
    return content


def junk_inserted(content, random):
    start = random.randrange(len(content))
    content[start:start] = random.randbytes(random.randrange(1, 60))
    return content


def junk_appended(content, random):
    return content + random.randbytes(random.randrange(1, 60))


def length_of_header_huge(content, random):
    content[:8] = struct.pack("<Q", random.choice((2**63, 2**64 - 1, 2**40, 0, len(content))))
    return content


def number_replaced(content, random):
    return _replaced(content, random, rb"\d+", NUMBERS)


def type_replaced(content, random):
    return _replaced(content, random, rb"F32|F64|[<>|][fiub]\d", DTYPES)


def name_replaced(content, random):
    return _replaced(content, random, rb"[a-z_]{4,}", NAMES)


def replaced_by_something_else(content, random):
    other = (b"", b"text", b"PK\x03\x04", b"\x93NUMPY", pickle.dumps({"a": 1}), b"{}", bytes(64), b"\x80\x04\x95")
    return bytearray(random.choice(other))


def doubled(content, random):
    return content + content


KINDS = (
    cut_off,
    one_bit_flipped,
    one_bit_of_the_beginning_flipped,
    one_bit_of_the_end_flipped,
    block_zeroed,
    block_left_out,
    junk_inserted,
    junk_appended,
    length_of_header_huge,
    number_replaced,
    type_replaced,
    name_replaced,
    replaced_by_something_else,
    doubled,
)


def _replaced(content, random, pattern, values):
    # Where there is text: in the first and last 800 bytes.
    places = [match.span() for match in re.finditer(pattern, bytes(content))]
    places = [(a, b) for a, b in places if a < 800 or a > len(content) - 800]
    if places:
        start, end = random.choice(places)
        content[start:end] = random.choice(values)
    return content


def outcomes(path, read, same, number, payload=0, seed=0):
    """Damage a file so many times and read it; return how many readings had each outcome, and examples of bad ones.

    Args:
        path: The whole file.
        read: Reads a path.
        same: Tells whether what was read is what the whole file holds.
        number: How many times.
        payload: How many bytes at the end are numbers that no checksum covers; changes of these alone count apart.
        seed: Of the damages.
    """
    whole, drawn = path.read_bytes(), random.Random(seed)
    counts, examples = Counter(), []
    for _ in range(number):
        kind, content = mutated(whole, drawn)
        if content == whole:
            continue
        path.write_bytes(content)
        try:
            outcome = "unharmed" if same(read(path)) else "silent"
            head = len(whole) - payload
            if outcome == "silent" and payload and len(content) == len(whole) and content[:head] == whole[:head]:
                outcome = "other numbers"
        except (ValueError, OSError) as error:
            outcome = "refused" if path.name in str(error) and "\n" not in str(error) else "unnamed"
            text = str(error)
        except Exception as error:
            outcome, text = "crash", f"{type(error).__name__}: {error}"
        counts[outcome] += 1
        if outcome in ("unnamed", "crash"):
            examples.append((kind, text))
        elif outcome == "silent":
            examples.append((kind, "silent"))
    path.write_bytes(whole)
    return counts, examples
