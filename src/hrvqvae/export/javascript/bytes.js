// Bytes: checks, numbers and texts; what is refused.

/** A file that is damaged, or not of this format or model. */
export class Refused extends Error {}

export function refuseUnless(condition, why) {
  if (!condition) throw new Refused(why);
}

const CRC8 = Uint8Array.from({ length: 256 }, (_, v) => {
  for (let i = 0; i < 8; i++) v = ((v << 1) ^ (v & 0x80 ? 0x1d : 0)) & 0xff;
  return v;
});

export function crc8(register, bytes, from, to) {
  for (let i = from; i < to; i++) register = CRC8[register ^ bytes[i]];
  return register;
}

const CRC32 = Uint32Array.from({ length: 256 }, (_, v) => {
  for (let i = 0; i < 8; i++) v = v & 1 ? (v >>> 1) ^ 0xedb88320 : v >>> 1;
  return v;
});

export function crc32(...parts) {
  let register = 0xffffffff;
  for (const bytes of parts) for (const byte of bytes) register = CRC32[(register ^ byte) & 0xff] ^ (register >>> 8);
  return (register ^ 0xffffffff) >>> 0;
}

/** Reads varints of at most `most` bytes from `bytes`, from `at` on. */
export class Varints {
  constructor(bytes, at, most) {
    Object.assign(this, { bytes, at, most });
  }

  next() {
    let value = 0;
    for (let i = 0; i < this.most; i++) {
      refuseUnless(this.at < this.bytes.length, "a varint goes beyond the end");
      const byte = this.bytes[this.at++];
      value += (byte & 0x7f) * 2 ** (7 * i);
      if (byte < 0x80) {
        refuseUnless(byte !== 0 || i === 0, "a varint has more bytes than it needs");
        return value;
      }
    }
    throw new Refused(`a varint has more than ${this.most} bytes`);
  }
}

export function utf8(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new Refused("a text is not UTF-8");
  }
}

export const ascii = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, to));

/** A little-endian unsigned number of four bytes. */
export const uint32 = (bytes, at) => bytes[at] + bytes[at + 1] * 256 + bytes[at + 2] * 65536 + bytes[at + 3] * 2 ** 24;

/** Decompresses zlib (RFC 1950) to at most `limit` bytes, with nothing after it. */
export async function inflate(bytes, limit, what) {
  const parts = [];
  let length = 0;
  try {
    const reader = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
      length += value.length;
      if (length > limit) {
        await reader.cancel();
        break;
      }
    }
  } catch (error) {
    throw new Refused(`${what} can't be decompressed: ${error.message}`);
  }
  refuseUnless(length <= limit, `${what} is longer than ${limit} bytes`);
  const plain = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    plain.set(part, at);
    at += part.length;
  }
  return plain;
}

/** Writes a varint (docs/format.md) to the end of a list of bytes. */
export function pushVarint(bytes, value) {
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  bytes.push(value);
}
