// Bytes: checks, numbers and texts; what is refused.

import { inflateSync } from "node:zlib";

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

export function inflate(bytes, limit, what) {
  try {
    const { buffer, engine } = inflateSync(bytes, { maxOutputLength: limit + 1, info: true });
    refuseUnless(engine.bytesWritten === bytes.length, `${what}: bytes are left after the compressed ones`);
    return buffer;
  } catch (error) {
    throw error instanceof Refused ? error : new Refused(`${what} can't be decompressed: ${error.message}`);
  }
}
