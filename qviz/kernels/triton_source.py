"""The GPU kernels, as Triton compiles them. Read `affine_gemv` first; the others vary it.

A kernel is run many times at once. Each run is a *program*: it learns its number from
`tl.program_id`, works out from it which rows of the weight are its own, and computes their outputs.
Within a program every name is a block of numbers, spread over 32 to 128 threads: `tl.load` of 32
addresses is one instruction of 32 threads. Nothing here is shared between programs, so the result
is the same, bit for bit, in whatever order the GPU runs them.

Where the 4-bit codes lie. Eight codes make an int32 word, four words make a chunk of 32 columns,
and one thread reads a chunk at once (16 bytes, the widest load that there is). Within a chunk the
codes are dealt out like cards, so that what one instruction of the loop below needs, the j-th code
of each word, belongs to neighbouring columns, and the inputs of these are one load, too:

    word 0    column 28  24  20  16  12   8   4   0      the lowest four bits are on the right
    word 1    column 29  25  21  17  13   9   5   1
    word 2    column 30  26  22  18  14  10   6   2
    word 3    column 31  27  23  19  15  11   7   3
    code j =          7   6   5   4   3   2   1   0

CHUNK is the number of words of a chunk: 4, or 2 or 1 where groups are no multiples of 32 columns.
Chunk follows chunk along a row, row follows row: [rows, columns/8] words, and no gaps.

Symbols: x [tokens, columns] inputs, y [tokens, rows] outputs. Names in capitals are known when the
kernel is compiled, so that loops over them are unrolled and products of them cost nothing.
"""

# mypy: ignore-errors
# What a kernel computes with has types of Triton's own, which annotations cannot express.

import triton
import triton.language as tl

# What tl.sum and tl.max hand to tl.reduce. They are jit functions themselves, made for the
# interpreter or for the compiler when Triton is first imported; tl.reduce works in both.
from triton.language.standard import _elementwise_max as larger
from triton.language.standard import _sum_combine as add

# Whether this copy of the functions is the interpreter's; see `multiply`.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

# ---------------------------------------------------------------------- four bits to a number


@triton.jit
def nibble(words, j: tl.constexpr):
    """The j-th code of each word, an integer 0 … 15."""
    # [code]
    return (words.to(tl.uint32, bitcast=True) >> (4 * j)).to(tl.int32) & 15


@triton.jit
def code_minus(words, zero, magic, j: tl.constexpr):
    """The j-th code of each word, minus `zero`, in float32: three instructions, no conversion.

    GPUs convert integers to floats at a quarter of their speed. So the four bits are put, where
    they stand, into the mantissa of a float instead. `magic` is 0x4B000000, the bits of 2²³: the
    last bit of such a float counts 1, so with code q at bit p it is 2²³ + q·2ᵖ. One fused
    multiply-add, (…)·2⁻ᵖ − (2²³⁻ᵖ + zero), leaves q − zero, and nothing was rounded: both products
    are exact, and so is their difference.

    A mantissa has room for the first five codes; the other three come into it by one shift, which
    they share. `magic` is an argument of the kernel because a constant would be loaded into a
    register again for every use: the instruction that does "and" and "or" at once (LOP3) takes
    only one constant, and that is the mask.
    """
    # [code]
    shift: tl.constexpr = 0 if j < 5 else 12
    place: tl.constexpr = 4 * j - shift
    bits = ((words >> shift) & (15 << place)) | magic
    exact = bits.to(tl.float32, bitcast=True)
    return tl.fma(exact, 0.5**place, -(zero + 8388608.0 * 0.5**place))


# ---------------------------------------------------------------------- 4 bits, one token


@triton.jit
def affine_gemv(
    x_ptr,
    words_ptr,
    scale_ptr,
    zero_ptr,
    y_ptr,
    rows,
    magic,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    ZERO: tl.constexpr,
    ZEROS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """y = x·Ŵᵀ with ŵ = scale·(code − zero), for one token and BLOCK_ROWS rows a program.

    ZEROS  "one" zero for all, ZERO; or a tensor of "integer" or "real" zeros, one for each group
    """
    # [rows] The last program begins early enough to have all its rows: what it computes twice
    # comes out the same twice, and no load in the loop has to ask whether its row exists.
    first = tl.minimum(tl.program_id(0) * BLOCK_ROWS, rows - BLOCK_ROWS)
    row = first + tl.arange(0, BLOCK_ROWS)  # [rows]
    token = tl.program_id(1)
    chunks: tl.constexpr = COLUMNS // (8 * CHUNK)
    whole: tl.constexpr = chunks % BLOCK_CHUNKS == 0  # no chunk beyond the end of a row
    lane = tl.arange(0, CHUNK)
    total = tl.full((BLOCK_ROWS, BLOCK_CHUNKS), 0.0, tl.float32)

    for start in range(0, chunks, BLOCK_CHUNKS):
        # [words] A thread has one chunk of each row: CHUNK words side by side, one load. Their
        # addresses are one run, reshaped afterwards: so the compiler sees that neighbouring
        # threads should have neighbouring chunks, and not, say, neighbouring rows.
        word = start * CHUNK + tl.arange(0, BLOCK_CHUNKS * CHUNK)
        words = tl.load(
            words_ptr + (row[:, None] * (chunks * CHUNK) + word[None, :]),
            mask=None if whole else (word < chunks * CHUNK)[None, :],
        ).to(tl.uint32, bitcast=True)
        words = tl.reshape(words, (BLOCK_ROWS, BLOCK_CHUNKS, CHUNK))

        # [scale] All columns of a chunk are of one group, so a thread needs one scale a row.
        chunk = start + tl.arange(0, BLOCK_CHUNKS)
        there = None if whole else (chunk < chunks)[None, :]
        group = row[:, None] * (COLUMNS // GROUP) + (chunk * (8 * CHUNK) // GROUP)[None, :]
        scale = tl.load(scale_ptr + group, mask=there).to(tl.float32)  # [rows, chunks]
        zero = ZERO
        if ZEROS != "one":
            zero = tl.load(zero_ptr + group, mask=there).to(tl.float32)[:, :, None]

        partial = tl.full((BLOCK_ROWS, BLOCK_CHUNKS, CHUNK), 0.0, tl.float32)
        for j in tl.static_range(8):
            # [inputs] Read and converted once for all rows of the program. Beyond the end of a
            # row they are 0, and so is what they contribute.
            column = chunk[:, None] * (8 * CHUNK) + j * CHUNK + lane[None, :]  # [chunks, CHUNK]
            x = tl.load(
                x_ptr + token * COLUMNS + column,
                mask=None if whole else column < COLUMNS,
                other=None if whole else 0.0,
            ).to(tl.float32)

            # [codes] Three instructions a weight; a real zero (HQQ) is a fourth, because 2²³ plus
            # a fraction would be rounded.
            if ZEROS == "real":
                code = code_minus(words, 0.0, magic, j) - zero
            else:
                code = code_minus(words, zero, magic, j)

            # [products] Codes times inputs: the scale of a group can wait for the sum.
            partial = tl.fma(code, x[None, :, :], partial)

        # [total] A thread adds up its own columns; there is nothing to exchange yet.
        total = tl.fma(scale, tl.reduce(partial, 2, add), total)

    # [store] Now the threads add up theirs. Splitting a row over threads instead of programs
    # needs no second kernel, and no atomic addition whose order would change from run to run.
    y = tl.reduce(total, 1, add)
    tl.store(y_ptr + token * rows + row, y.to(y_ptr.dtype.element_ty))


@triton.jit
def levels(table, codes):
    """The level of each code. Codes of any shape, table [16].

    Where one warp (32 threads) runs the program, each of its threads keeps a level in a register,
    and asks the thread whose number is the code for its own (SHFL); more warps look it up in their
    shared memory. Both answer 32 threads in a cycle, and so do loads: with a lookup for every
    weight this, not the arithmetic, is what bounds the kernel.
    """
    # [level]
    flat = tl.reshape(codes, (codes.numel,))
    return tl.reshape(tl.gather(table, flat, 0), codes.shape)


@triton.jit
def block_scale(scale_ptr, second_ptr, offset_ptr, table_ptr, block, there, DOUBLE: tl.constexpr):
    """The scale of each block. With double quantization it is a code of 8 bits itself: a level of
    the second table, times a scale for 256 blocks, plus the mean of them all."""
    # [scale]
    scale = tl.load(scale_ptr + block, mask=there)
    if DOUBLE:
        level = tl.load(table_ptr + 16 + scale.to(tl.int32), mask=there)
        second = tl.load(second_ptr + block // 256, mask=there)
        return level * second + tl.load(offset_ptr)
    return scale.to(tl.float32)


@triton.jit
def codebook_gemv(
    x_ptr,
    words_ptr,
    scale_ptr,
    second_ptr,
    offset_ptr,
    table_ptr,
    y_ptr,
    rows,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    ALIGNED: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """y = x·Ŵᵀ with ŵ = table[code]·scale, blocks of GROUP weights running over the flat matrix.

    ALIGNED  a chunk never lies in two blocks, so that its weights share a scale
    """
    # [rows] As in affine_gemv: the last program has all its rows, some of them for a second time.
    first = tl.minimum(tl.program_id(0) * BLOCK_ROWS, rows - BLOCK_ROWS)
    row = first + tl.arange(0, BLOCK_ROWS)  # [rows]
    token = tl.program_id(1)
    chunks: tl.constexpr = (COLUMNS + 8 * CHUNK - 1) // (8 * CHUNK)
    whole: tl.constexpr = COLUMNS % (8 * CHUNK * BLOCK_CHUNKS) == 0
    lane = tl.arange(0, CHUNK)
    table = tl.load(table_ptr + tl.arange(0, 16))
    total = tl.full((BLOCK_ROWS, BLOCK_CHUNKS), 0.0, tl.float32)

    for start in range(0, chunks, BLOCK_CHUNKS):
        # [words] A thread has one chunk of each row: CHUNK words side by side, one load.
        word = start * CHUNK + tl.arange(0, BLOCK_CHUNKS * CHUNK)
        words = tl.load(
            words_ptr + (row[:, None] * (chunks * CHUNK) + word[None, :]),
            mask=None if whole else (word < chunks * CHUNK)[None, :],
            other=None if whole else 0,
        )
        words = tl.reshape(words, (BLOCK_ROWS, BLOCK_CHUNKS, CHUNK))

        # [scale] Blocks are counted along the flat matrix: weight [r, c] is number r·COLUMNS + c.
        chunk = start + tl.arange(0, BLOCK_CHUNKS)
        there = None if whole else (chunk < chunks)[None, :]
        flat = row[:, None] * COLUMNS + (chunk * (8 * CHUNK))[None, :]  # [rows, chunks]
        if ALIGNED:
            block = flat // GROUP
            scale = block_scale(scale_ptr, second_ptr, offset_ptr, table_ptr, block, there, DOUBLE)

        partial = tl.full((BLOCK_ROWS, BLOCK_CHUNKS, CHUNK), 0.0, tl.float32)
        for j in tl.static_range(8):
            # [inputs] Read and converted once for all rows of the program.
            column = chunk[:, None] * (8 * CHUNK) + j * CHUNK + lane[None, :]  # [chunks, CHUNK]
            x = tl.load(
                x_ptr + token * COLUMNS + column,
                mask=None if whole else column < COLUMNS,
                other=None if whole else 0.0,
            ).to(tl.float32)

            # [codes] Levels that follow no formula have to be looked up.
            code = nibble(words, j)
            level = levels(table, code)

            # [products] In a block that may end within a chunk, the scale is looked up as well.
            if not ALIGNED:
                inside = (column < COLUMNS)[None, :, :]
                block = (flat[:, :, None] + (j * CHUNK + lane)[None, None, :]) // GROUP
                level *= block_scale(
                    scale_ptr, second_ptr, offset_ptr, table_ptr, block, inside, DOUBLE
                )
                level = tl.where(inside, level, 0.0)
            partial = tl.fma(level, x[None, :, :], partial)

        # [total] A thread adds up its own columns; the scale of a block multiplies their sum.
        if ALIGNED:
            total = tl.fma(scale, tl.reduce(partial, 2, add), total)
        else:
            total += tl.reduce(partial, 2, add)

    # [store] The threads add up theirs, always in the same order.
    y = tl.reduce(total, 1, add)
    tl.store(y_ptr + token * rows + row, y.to(y_ptr.dtype.element_ty))


# ---------------------------------------------------------------------- 4 bits, many tokens


@triton.jit
def multiply(a, b, total):
    """total + a·b, matrices of the inputs' dtype, sums in float32 (float32 is not cut to TF32)."""
    if INTERPRETED:
        # NumPy has no bfloat16, and the interpreter multiplies its bits as if they were integers.
        # Products of two 16-bit floats are exact in float32, so nothing else changes.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision="ieee")


@triton.jit
def four_bit_dot(
    x_ptr,
    words_ptr,
    scale_ptr,
    zero_ptr,
    second_ptr,
    offset_ptr,
    table_ptr,
    y_ptr,
    tokens,
    rows,
    magic,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    ZERO: tl.constexpr,
    ZEROS: tl.constexpr,
    CODEBOOK: tl.constexpr,
    ALIGNED: tl.constexpr,
    DOUBLE: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """y = x·Ŵᵀ for BLOCK_TOKENS tokens and BLOCK_ROWS rows a program, on the tensor cores.

    They multiply matrices of 16-bit numbers, so weights are decoded, multiplied by their scale and
    rounded to the inputs' dtype on the way. Eight small products instead of one: the j-th codes of
    a tile of words are a matrix, and so are the inputs of their columns; nothing is interleaved.
    With SPLIT > 1 the words of a row are shared out among as many programs; y is then float32
    [SPLIT, tokens, rows], and `add_splits` adds these up, always in the same order.
    """
    # [rows]
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    part = tl.program_id(2)
    width: tl.constexpr = (COLUMNS + 8 * CHUNK - 1) // (8 * CHUNK) * CHUNK  # words of a row
    steps: tl.constexpr = (width + BLOCK_WORDS * SPLIT - 1) // (BLOCK_WORDS * SPLIT)
    here = tl.minimum(row, rows - 1)[:, None]  # a row that exists; the others are not stored
    table = tl.load(table_ptr + tl.arange(0, 16)) if CODEBOOK else None
    total = tl.full((BLOCK_ROWS, BLOCK_TOKENS), 0.0, tl.float32)

    for step in range(0, steps):
        # [words]
        word = (part * steps + step) * BLOCK_WORDS + tl.arange(0, BLOCK_WORDS)
        there = (word < width)[None, :]
        words = tl.load(words_ptr + here * width + word[None, :], mask=there, other=0)
        bits = words.to(tl.uint32, bitcast=True)

        # [scale] One for each row where the tile lies in one group, else one for each word.
        column = word // CHUNK * (8 * CHUNK) + word % CHUNK  # [words], of code 0
        if CODEBOOK:
            if ALIGNED:
                block = (here * COLUMNS + (word // CHUNK * (8 * CHUNK))[None, :]) // GROUP
                scale = block_scale(
                    scale_ptr, second_ptr, offset_ptr, table_ptr, block, there, DOUBLE
                )
        else:
            first = (part * steps + step) * BLOCK_WORDS
            one: tl.constexpr = GROUP % (8 * BLOCK_WORDS) == 0 and BLOCK_WORDS % CHUNK == 0
            group = first + tl.arange(0, 1) if one else word
            group = group // CHUNK * (8 * CHUNK) // GROUP
            known = (group < COLUMNS // GROUP)[None, :]
            at = here * (COLUMNS // GROUP) + group[None, :]  # [rows, words or 1]
            scale = tl.load(scale_ptr + at, mask=known, other=0.0).to(tl.float32)
            zero = ZERO
            if ZEROS != "one":
                zero = tl.load(zero_ptr + at, mask=known, other=0).to(tl.float32)

        for j in tl.static_range(8):
            # [inputs]
            place = column + j * CHUNK  # [words]
            x = tl.load(
                x_ptr + token[None, :] * COLUMNS + place[:, None],  # [words, tokens]
                mask=(place < COLUMNS)[:, None] & (token < tokens)[None, :],
                other=0.0,
            )

            # [codes]
            if CODEBOOK:
                weight = levels(table, nibble(words, j))
                if ALIGNED:
                    weight *= scale
                else:
                    inside = (place < COLUMNS)[None, :]
                    block = (here * COLUMNS + place[None, :]) // GROUP
                    level_scale = block_scale(
                        scale_ptr, second_ptr, offset_ptr, table_ptr, block, inside, DOUBLE
                    )
                    weight = tl.where(inside, weight * level_scale, 0.0)
            elif ZEROS == "real":
                weight = (code_minus(bits, 0.0, magic, j) - zero) * scale
            else:
                weight = code_minus(bits, zero, magic, j) * scale

            # [products]
            total = multiply(weight.to(x.dtype), x, total)

    # [store]
    at = (part * tokens + token[None, :]) * rows + row[:, None]
    mask = (token < tokens)[None, :] & (row < rows)[:, None]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_splits(part_ptr, y_ptr, numbers, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """y [numbers] = the sum over the first axis of [SPLIT, numbers], from first to last."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(part_ptr + part * numbers + at, mask=at < numbers, other=0.0)
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=at < numbers)


# ---------------------------------------------------------------------- dequantize only


@triton.jit
def dequantize(
    words_ptr,
    scale_ptr,
    zero_ptr,
    second_ptr,
    offset_ptr,
    table_ptr,
    weight_ptr,
    rows,
    magic,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    ZERO: tl.constexpr,
    ZEROS: tl.constexpr,
    CODEBOOK: tl.constexpr,
    ALIGNED: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Ŵ [rows, columns] in 16 bits, one row and BLOCK words a program: a quarter is read of what
    is written, and a product that comes after reads that again."""
    row = tl.program_id(0)
    width: tl.constexpr = (COLUMNS + 8 * CHUNK - 1) // (8 * CHUNK) * CHUNK
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = word < width
    table = tl.load(table_ptr + tl.arange(0, 16)) if CODEBOOK else None
    words = tl.load(words_ptr + row * width + word, mask=there, other=0)
    bits = words.to(tl.uint32, bitcast=True)
    column = word // CHUNK * (8 * CHUNK) + word % CHUNK  # of code 0
    if CODEBOOK:
        if ALIGNED:
            block = (row * COLUMNS + word // CHUNK * (8 * CHUNK)) // GROUP
            scale = block_scale(scale_ptr, second_ptr, offset_ptr, table_ptr, block, there, DOUBLE)
    else:
        at = row * (COLUMNS // GROUP) + word // CHUNK * (8 * CHUNK) // GROUP
        scale = tl.load(scale_ptr + at, mask=there).to(tl.float32)
        zero = ZERO
        if ZEROS != "one":
            zero = tl.load(zero_ptr + at, mask=there).to(tl.float32)
    for j in tl.static_range(8):
        place = column + j * CHUNK
        inside = place < COLUMNS
        if CODEBOOK:
            weight = levels(table, nibble(words, j))
            if not ALIGNED:
                block = (row * COLUMNS + place) // GROUP
                scale = block_scale(
                    scale_ptr, second_ptr, offset_ptr, table_ptr, block, inside, DOUBLE
                )
        elif ZEROS == "real":
            weight = code_minus(bits, 0.0, magic, j) - zero
        else:
            weight = code_minus(bits, zero, magic, j)
        weight = (weight * scale).to(weight_ptr.dtype.element_ty)
        tl.store(weight_ptr + row * COLUMNS + place, weight, mask=inside)


# ---------------------------------------------------------------------- inputs in eight bits


@triton.jit
def row_scale(x_ptr, token, largest, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """The step of one token: its largest magnitude divided by the largest code, NaN where an input
    is NaN or infinite, as the product then is.

    x − x is 0 for a number and NaN for NaN and ±∞; added to the scale, it makes the whole row NaN,
    for the conversion to integers would turn either into some number.
    """
    # [step]
    most = tl.full((BLOCK,), 0.0, tl.float32)
    broken = tl.full((BLOCK,), 0.0, tl.float32)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + token * COLUMNS + column, mask=column < COLUMNS, other=0.0)
        x = x.to(tl.float32)
        most = tl.maximum(most, tl.where(x - x == 0.0, tl.abs(x), 0.0))
        broken += x - x
    step = tl.div_rn(tl.reduce(most, 0, larger), largest)
    return step + tl.reduce(broken, 0, add)


@triton.jit
def int8_inputs(x_ptr, codes_ptr, step_ptr, largest, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Codes [tokens, columns] int8 and steps [tokens], absmax/127 of each token; rounded to the
    nearest, ties to even."""
    token = tl.program_id(0)
    step = row_scale(x_ptr, token, largest, COLUMNS, BLOCK)
    tl.store(step_ptr + token, step)

    # [quantized]
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + token * COLUMNS + column, mask=column < COLUMNS, other=0.0)
        # A plain / is off by up to two units in the last place, which near a tie is another code.
        ratio = tl.div_rn(x.to(tl.float32), tl.where(step > 0.0, step, 1.0))
        # At 1.5·2²³ floats are whole numbers: adding that rounds, to nearest and ties to even.
        code = (ratio + 12582912.0) - 12582912.0
        code = tl.where(code - code == 0.0, code, 0.0).to(tl.int8)
        tl.store(codes_ptr + token * COLUMNS + column, code, mask=column < COLUMNS)


@triton.jit
def nearest_e4m3(x):
    """x, between −448 and 448, rounded to three bits of mantissa, ties to even, in float32.

    The largest power of two p in |x| is its exponent alone; below 2⁻⁶, where E4M3 is subnormal,
    steps grow no smaller. Near 1.5·2²⁰·p floats are p/8 apart: adding that rounds. A GPU would
    round like this when it converts, Triton's interpreter not quite; now neither has to.
    """
    power = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    far = tl.maximum(power, 0.015625) * 1572864.0
    return (x + far) - far


@triton.jit
def fp8_inputs(x_ptr, codes_ptr, step_ptr, largest, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Codes [tokens, columns] E4M3 and steps [tokens], absmax/448 of each token; rounded to the
    nearest, ties to even."""
    token = tl.program_id(0)
    step = row_scale(x_ptr, token, largest, COLUMNS, BLOCK)
    tl.store(step_ptr + token, step)
    for start in range(0, COLUMNS, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + token * COLUMNS + column, mask=column < COLUMNS, other=0.0)
        ratio = tl.div_rn(x.to(tl.float32), tl.where(step > 0.0, step, 1.0))
        # A subnormal step is so coarse that the quotient can leave the range of the format.
        ratio = tl.minimum(tl.maximum(ratio, -448.0), 448.0)
        code = nearest_e4m3(tl.where(ratio - ratio == 0.0, ratio, 0.0)).to(tl.float8e4nv)
        tl.store(codes_ptr + token * COLUMNS + column, code, mask=column < COLUMNS)


@triton.jit
def int8_gemv(
    codes_ptr,
    step_ptr,
    weight_ptr,
    scale_ptr,
    y_ptr,
    rows,
    COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """y = step·scale·Σ codes·weights for one token and BLOCK_ROWS rows a program: sums of int32
    are exact, so rounding happens twice, at the very end."""
    # [rows] The last program has all its rows, some of them for a second time.
    first = tl.minimum(tl.program_id(0) * BLOCK_ROWS, rows - BLOCK_ROWS)
    row = first + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1)
    whole: tl.constexpr = COLUMNS % BLOCK_COLUMNS == 0
    total = tl.full((BLOCK_ROWS, BLOCK_COLUMNS), 0, tl.int32)

    for start in range(0, COLUMNS, BLOCK_COLUMNS):
        # [weights] Sixteen of a row for each thread, one load.
        column = start + tl.arange(0, BLOCK_COLUMNS)
        there = None if whole else (column < COLUMNS)[None, :]
        other = None if whole else 0
        weight = tl.load(
            weight_ptr + (row[:, None] * COLUMNS + column[None, :]), mask=there, other=other
        )

        # [inputs]
        code = tl.load(
            codes_ptr + token * COLUMNS + column,
            mask=None if whole else column < COLUMNS,
            other=other,
        )

        # [products] Products of 8 by 8 bits, at most 2¹⁴: 2¹⁷ columns cannot overflow 32 bits.
        total += weight.to(tl.int32) * code.to(tl.int32)[None, :]

    # [store] The threads add up theirs; the scales of the row and of the token come last.
    exact = tl.reduce(total, 1, add).to(tl.float32)
    y = exact * (tl.load(step_ptr + token) * tl.load(scale_ptr + row).to(tl.float32))
    tl.store(y_ptr + token * rows + row, y.to(y_ptr.dtype.element_ty))


@triton.jit
def eight_bit_dot(
    codes_ptr,
    step_ptr,
    weight_ptr,
    scale_ptr,
    y_ptr,
    tokens,
    rows,
    COLUMNS: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """y = step·scale·Σ codes·weights for many tokens, both of eight bits: the tensor cores multiply
    int8 into int32, E4M3 into float32.

    SCALES  "row": a scale for each row; "tensor": one
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    here = tl.minimum(row, rows - 1)
    integers: tl.constexpr = weight_ptr.dtype.element_ty == tl.int8
    kind: tl.constexpr = tl.int32 if integers else tl.float32
    nothing: tl.constexpr = 0 if integers else 0.0
    total = tl.full((BLOCK_ROWS, BLOCK_TOKENS), 0, kind)
    for start in range(0, COLUMNS, BLOCK_COLUMNS):
        column = start + tl.arange(0, BLOCK_COLUMNS)
        weight = tl.load(
            weight_ptr + (here[:, None] * COLUMNS + column[None, :]),
            mask=(column < COLUMNS)[None, :],
            other=nothing,
        )
        code = tl.load(
            codes_ptr + (token[None, :] * COLUMNS + column[:, None]),
            mask=(column < COLUMNS)[:, None] & (token < tokens)[None, :],
            other=nothing,
        )
        # The tensor cores of an H100 keep only some 14 bits of a sum of E4M3 products. So it is
        # taken out after each block and added up in float32.
        total = tl.dot(weight, code, total, max_num_imprecise_acc=BLOCK_COLUMNS, out_dtype=kind)
    scale = tl.load(scale_ptr + (here if SCALES == "row" else here * 0)).to(tl.float32)
    step = tl.load(step_ptr + token, mask=token < tokens, other=0.0)
    y = total.to(tl.float32) * (scale[:, None] * step[None, :])
    mask = (token < tokens)[None, :] & (row < rows)[:, None]
    tl.store(y_ptr + token[None, :] * rows + row[:, None], y.to(y_ptr.dtype.element_ty), mask=mask)


# ---------------------------------------------------------------------- FP8 weights, 16-bit inputs


@triton.jit
def e4m3_to_float(words, j: tl.constexpr):
    """The j-th byte of each word as an E4M3 number, in float32.

    Its sign goes to the sign of a float, its exponent and mantissa to the lowest bits of the
    exponent and the highest of the mantissa: as bits it is the same number 2¹²⁰ times smaller,
    because the exponents count from 7 and from 127; also where it is subnormal. Shifting the sign
    along, arithmetically, and cutting its copies off takes one instruction less than moving both.
    """
    top = words << (24 - 8 * j)
    bits = (top >> 4) & -2014314496  # 0x87F00000: sign, four bits of exponent, three of mantissa
    return bits.to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2¹²⁰


@triton.jit
def fp8_gemv(
    x_ptr,
    words_ptr,
    scale_ptr,
    y_ptr,
    rows,
    COLUMNS: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """y = x·Ŵᵀ with E4M3 weights and inputs as they are, one token and BLOCK_ROWS rows a program.

    Four weights make a word: byte j of word i is column 16·(i/4) + 4·j + i%4, dealt out in chunks
    of four words as the 4-bit codes are.
    """
    first = tl.minimum(tl.program_id(0) * BLOCK_ROWS, rows - BLOCK_ROWS)
    row = first + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1)
    chunks: tl.constexpr = (COLUMNS + 15) // 16
    whole: tl.constexpr = COLUMNS % (4 * BLOCK_WORDS) == 0
    lane = tl.arange(0, 4)
    total = tl.full((BLOCK_ROWS, BLOCK_WORDS // 4, 4), 0.0, tl.float32)
    for start in range(0, chunks, BLOCK_WORDS // 4):
        chunk = start + tl.arange(0, BLOCK_WORDS // 4)
        word = start * 4 + tl.arange(0, BLOCK_WORDS)
        words = tl.load(
            words_ptr + (row[:, None] * (chunks * 4) + word[None, :]),
            mask=None if whole else (word < chunks * 4)[None, :],
            other=None if whole else 0,
        )
        words = tl.reshape(words, (BLOCK_ROWS, BLOCK_WORDS // 4, 4))
        for j in tl.static_range(4):
            column = chunk[:, None] * 16 + 4 * j + lane[None, :]
            x = tl.load(
                x_ptr + token * COLUMNS + column,
                mask=None if whole else column < COLUMNS,
                other=None if whole else 0.0,
            ).to(tl.float32)
            total = tl.fma(e4m3_to_float(words, j), x[None, :, :], total)
    y = tl.reduce(tl.reduce(total, 2, add), 1, add)
    y *= tl.load(scale_ptr + (row if SCALES == "row" else row * 0)).to(tl.float32)
    tl.store(y_ptr + token * rows + row, y.to(y_ptr.dtype.element_ty))


@triton.jit
def fp8_wide_dot(
    x_ptr,
    words_ptr,
    scale_ptr,
    y_ptr,
    tokens,
    rows,
    COLUMNS: tl.constexpr,
    SCALES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    """y = x·Ŵᵀ with E4M3 weights and inputs as they are, for many tokens: every E4M3 number is one
    in 16 bits, too, so nothing is rounded before the tensor cores multiply."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    here = tl.minimum(row, rows - 1)
    width: tl.constexpr = (COLUMNS + 15) // 16 * 4
    total = tl.full((BLOCK_ROWS, BLOCK_TOKENS), 0.0, tl.float32)
    for start in range(0, width, BLOCK_WORDS):
        word = start + tl.arange(0, BLOCK_WORDS)
        words = tl.load(
            words_ptr + here[:, None] * width + word[None, :], mask=(word < width)[None, :], other=0
        )
        for j in tl.static_range(4):
            place = word // 4 * 16 + 4 * j + word % 4
            x = tl.load(
                x_ptr + token[None, :] * COLUMNS + place[:, None],
                mask=(place < COLUMNS)[:, None] & (token < tokens)[None, :],
                other=0.0,
            )
            total = multiply(e4m3_to_float(words, j).to(x.dtype), x, total)
    scale = tl.load(scale_ptr + (here if SCALES == "row" else here * 0)).to(tl.float32)
    y = (total * scale[:, None]).to(y_ptr.dtype.element_ty)
    mask = (token < tokens)[None, :] & (row < rows)[:, None]
    tl.store(y_ptr + token[None, :] * rows + row[:, None], y, mask=mask)
