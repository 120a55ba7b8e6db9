"""Decoding in the GPU's own instructions: PTX for what `triton_source` says in plain words.

The compiler emits a shift, a mask and a conversion for every code. These texts handle two at once:
a register of 32 bits holds two 16-bit floats, and one instruction does the same to both. Each text
takes two words a and b ($8 and $9, or $4 and $5) and leaves in its first registers the planes, the
j-th code of a in the lower half of the j-th register and that of b in the upper half. Triton calls
that an elementwise function of two elements (`pack=2`).

`tests/kernels/test_triton_decode.py` runs these texts, instruction by instruction, for all codes.
"""

HALVES = ("0x5410", "0x7632")  # bytes of two words: both lower halves, both upper halves
AND_OR = "0xEA"  # the truth table of (a & b) | c


def affine(kind: str) -> str:
    """Eight planes of codes minus 8, exactly, in "bf16" or "f16".

    A float whose last bit counts 1 takes a code into that bit's place and the next three: with the
    bits of 128 (bfloat16) or 1024 (float16) around it, the four bits *are* the number 128 + code.
    One fused multiply-add takes 136 away from both halves.
    """
    magic, one, minus = {
        "bf16": ("0x43004300", "0x3F803F80", "0xC308C308"),  # 128, 1, −136
        "f16": ("0x64006400", "0x3C003C00", "0xE408E408"),  # 1024, 1, −1032
    }[kind]
    text = [
        ".reg .b32 half, moved, one, minus;",
        f"mov.b32 one, {one};",
        f"mov.b32 minus, {minus};",
    ]
    for upper in range(2):
        text.append(f"prmt.b32 half, $8, $9, {HALVES[upper]};")
        for place in range(4):
            code = f"${4 * upper + place}"
            text.append(f"shr.u32 moved, half, {4 * place};")
            text.append(f"lop3.b32 {code}, moved, 0x000F000F, {magic}, {AND_OR};")
            text.append(f"fma.rn.{kind}x2 {code}, {code}, one, minus;")
    return block(text)


def codebook() -> str:
    """Eight planes of 16-bit levels, looked up: $10, $12, … $24 are the table, lower bytes of
    levels 0–3, 4–7, 8–11, 12–15, then upper bytes (each register is given twice, as `pack` wants).

    PRMT picks four bytes out of eight by four numbers of three bits, which is what four codes are
    but for their highest bit: so one PRMT looks four codes up among levels 0–7, one among 8–15, and
    a third takes each from one of the two by the bit that was left out. Lower and upper bytes apart
    make six, and two more put them together: eight for four weights.
    """
    low, high = ("$10", "$12", "$14", "$16"), ("$18", "$20", "$22", "$24")
    text = [".reg .b32 four, which, from, below, above, lows, highs;"]
    for pair in range(2):
        # Codes 4·pair … +3: bytes a, b, a, b, each with two codes of its word.
        text.append(f"prmt.b32 four, $8, $9, {('0x5140', '0x7362')[pair]};")
        text.append("and.b32 which, four, 0x77777777;")
        text.append("shr.u32 from, four, 1;")
        text.append(f"lop3.b32 from, from, 0x44444444, 0x32103210, {AND_OR};")
        for half in range(2):
            if half:
                text += ["shr.u32 which, which, 16;", "shr.u32 from, from, 16;"]
            for bytes_, table in (("lows", low), ("highs", high)):
                text.append(f"prmt.b32 below, {table[0]}, {table[1]}, which;")
                text.append(f"prmt.b32 above, {table[2]}, {table[3]}, which;")
                text.append(f"prmt.b32 {bytes_}, below, above, from;")
            plane = 4 * pair + 2 * half
            text.append(f"prmt.b32 ${plane}, lows, highs, 0x6240;")
            text.append(f"prmt.b32 ${plane + 1}, lows, highs, 0x7351;")
    return block(text)


def e4m3(kind: str) -> str:
    """Four planes of E4M3 numbers in "bf16" or "f16"; $4 and $5 are words of four bytes.

    The sign of a byte goes to the sign, its exponent and mantissa to the lowest bits of the
    exponent and the highest of the mantissa: as bits that is the same number, too small by the
    difference of the exponents' biases, 127 − 7 or 15 − 7, subnormal numbers included. A
    multiplication corrects this.
    """
    shift, mask, factor = {
        "bf16": (4, "0x07F007F0", "0x7B807B80"),  # 2¹²⁰
        "f16": (1, "0x3F803F80", "0x5C005C00"),  # 2⁸
    }[kind]
    text = [".reg .b32 byte, sign, factor, nothing;", f"mov.b32 factor, {factor};"]
    text.append("mov.b32 nothing, 0x80008000;")  # −0: −0 times the factor stays −0
    for j in range(4):
        text.append(f"prmt.b32 byte, $4, $5, 0x{4 + j}{4 + j}{j}{j};")
        text.append("and.b32 sign, byte, 0x80008000;")
        text.append(f"shr.u32 byte, byte, {shift};")
        text.append(f"lop3.b32 byte, byte, {mask}, sign, {AND_OR};")
        text.append(f"fma.rn.{kind}x2 ${j}, byte, factor, nothing;")
    return block(text)


def block(text: list[str]) -> str:
    return "{ " + " ".join(text) + " }"
