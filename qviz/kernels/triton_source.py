"""The GPU kernels, as Triton compiles them. Read `affine_gemv` first; the others are variations.

A kernel is run many times at once. Each run is a *program*: it gets its number from
`tl.program_id`, derives from it which rows of the weight are its own, and computes their outputs.
Within a program every name is a block of numbers, spread over 32 to 256 threads: `tl.load` of 32
addresses is one instruction of 32 threads. Nothing here is shared between programs, so the result
is the same, bit for bit, in whatever order the GPU runs them.

Where the 4-bit codes lie. A row is cut into tiles of 128 columns; the tile of one row is 16 words
(int32) of eight codes each, 64 bytes. The codes are dealt out like cards, so that what one
instruction yields, the j-th code of each word, belongs to 16 neighbouring columns, a *plane*:

    word  0    column 112  96  80  64  48  32  16   0      the lowest four bits are on the right
    word  1    column 113  97  81  65  49  33  17   1
    word  2    column 114  98  82  66  50  34  18   2
    word 15    column 127 111  95  79  63  47  31  15
    code j =            7   6   5   4   3   2   1   0

Two things follow. A thread that reads four words at once (16 bytes, the widest load there is) needs
the inputs of four neighbouring columns for each plane: one load, too. And a tensor core, which
wants 16 columns at a time, finds them in one plane: each thread decodes exactly the weights that
the instruction expects of it, and no thread has to pass a weight to another.

In memory the first tile of all rows comes first, then the second of all rows: programs that run at
the same time read neighbouring bytes. WIDTH is the number of words of a tile: 16, or fewer where
groups or rows are no multiples of 128 columns. [tiles, rows, WIDTH] words, and no gaps.

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

from qviz.kernels import triton_decode

# Whether this copy of the functions is the interpreter's: it runs no machine instructions, and
# NumPy, with which it computes, has no bfloat16.
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
def scale_of(
    scale_ptr, second_ptr, offset_ptr, table_ptr, group, block, there, other, DOUBLE: tl.constexpr
):
    """The scale of each group in float32, found at place `group`. With double quantization what
    lies there is a code of 8 bits itself: a level of the second table, times a scale for 256
    blocks, plus the mean of them all; `block` counts the groups in the order of the weights."""
    # [scale]
    scale = tl.load(scale_ptr + group, mask=there, other=other)
    if DOUBLE:
        level = tl.load(table_ptr + 16 + scale.to(tl.int32), mask=there, other=other)
        second = tl.load(second_ptr + block // 256, mask=there, other=other)
        return tl.fma(level, second, tl.load(offset_ptr))
    return scale.to(tl.float32)


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
    WIDTH: tl.constexpr,
    ZERO: tl.constexpr,
    ZEROS: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """y = x·Ŵᵀ with ŵ = scale·(code − zero), for one token and BLOCK_ROWS rows a program.

    ZEROS   "one" zero for all, ZERO; or a tensor of "integer" or "real" zeros, one for each group
    STAGES  turns of the loop whose words are on their way at once
    """
    # [rows] The last program begins early enough to have all its rows: what it computes twice
    # comes out the same twice, and no load in the loop has to ask whether its row exists.
    first = tl.minimum(tl.program_id(0) * BLOCK_ROWS, rows - BLOCK_ROWS)
    row = first + tl.arange(0, BLOCK_ROWS)  # [rows]
    token = tl.program_id(1)
    CHUNK: tl.constexpr = WIDTH if WIDTH < 4 else 4  # words that one thread reads together
    TILE: tl.constexpr = 8 * WIDTH  # columns
    GROUPS: tl.constexpr = TILE // GROUP if GROUP < TILE else 1  # of a tile
    chunks: tl.constexpr = COLUMNS // (8 * CHUNK)
    whole: tl.constexpr = chunks % BLOCK_CHUNKS == 0  # no chunk beyond the end of a row
    lane = tl.arange(0, CHUNK)
    total = tl.full((BLOCK_ROWS, BLOCK_CHUNKS), 0.0, tl.float32)

    for start in tl.range(0, chunks, BLOCK_CHUNKS, num_stages=STAGES):
        # [words] A thread has one chunk of each row: CHUNK words side by side, one load. Their
        # addresses are one run, reshaped afterwards: so the compiler sees that neighbouring
        # threads should have neighbouring chunks, and not, say, neighbouring rows.
        word = start * CHUNK + tl.arange(0, BLOCK_CHUNKS * CHUNK)
        words = tl.load(
            words_ptr
            + ((word // WIDTH)[None, :] * (rows * WIDTH) + row[:, None] * WIDTH)
            + (word % WIDTH)[None, :],
            mask=None if whole else (word < chunks * CHUNK)[None, :],
            eviction_policy="evict_first",
        ).to(tl.uint32, bitcast=True)
        words = tl.reshape(words, (BLOCK_ROWS, BLOCK_CHUNKS, CHUNK))

        chunk = start + tl.arange(0, BLOCK_CHUNKS)
        there = None if whole else (chunk < chunks)[None, :]
        tile, place = chunk * CHUNK // WIDTH, chunk * CHUNK % WIDTH
        for g in tl.static_range(GROUPS):
            # [scale] A thread needs one scale a row for all planes of a group.
            group = (tile * TILE // GROUP + g)[None, :] * rows + row[:, None]
            scale = tl.load(scale_ptr + group, mask=there).to(tl.float32)  # [rows, chunks]
            zero = ZERO
            if ZEROS != "one":
                zero = tl.load(zero_ptr + group, mask=there)[:, :, None]

            partial = tl.full((BLOCK_ROWS, BLOCK_CHUNKS, CHUNK), 0.0, tl.float32)
            for j in tl.static_range(8 // GROUPS * g, 8 // GROUPS * (g + 1)):
                # [inputs] Read and converted once for all rows of the program. Beyond the end of a
                # row they are 0, and so is what they contribute.
                column = (tile * TILE + place)[:, None] + j * WIDTH + lane[None, :]
                x = tl.load(
                    x_ptr + token * COLUMNS + column,
                    mask=None if whole else column < COLUMNS,
                    other=None if whole else 0.0,
                ).to(tl.float32)

                # [codes] Three instructions a weight; a real zero (HQQ) is a fourth, because 2²³
                # plus a fraction would be rounded.
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
    WIDTH: tl.constexpr,
    ALIGNED: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHUNKS: tl.constexpr,
):
    """y = x·Ŵᵀ with ŵ = table[code]·scale, blocks of GROUP weights running over the flat matrix.

    ALIGNED  every row is whole blocks, and every tile too or a part of one: their scales lie as
             those of affine_gemv do, [groups, rows], else in the order of the flat matrix
    """
    # [rows] As in affine_gemv: the last program has all its rows, some of them for a second time.
    first = tl.minimum(tl.program_id(0) * BLOCK_ROWS, rows - BLOCK_ROWS)
    row = first + tl.arange(0, BLOCK_ROWS)  # [rows]
    token = tl.program_id(1)
    CHUNK: tl.constexpr = WIDTH if WIDTH < 4 else 4  # words that one thread reads together
    TILE: tl.constexpr = 8 * WIDTH  # columns
    GROUPS: tl.constexpr = TILE // GROUP if GROUP < TILE and ALIGNED else 1  # of a tile
    chunks: tl.constexpr = (COLUMNS + TILE - 1) // TILE * WIDTH // CHUNK
    whole: tl.constexpr = COLUMNS % TILE == 0 and chunks % BLOCK_CHUNKS == 0
    lane = tl.arange(0, CHUNK)
    table = tl.load(table_ptr + tl.arange(0, 16))
    total = tl.full((BLOCK_ROWS, BLOCK_CHUNKS), 0.0, tl.float32)

    for start in range(0, chunks, BLOCK_CHUNKS):
        # [words] A thread has one chunk of each row: CHUNK words side by side, one load.
        word = start * CHUNK + tl.arange(0, BLOCK_CHUNKS * CHUNK)
        words = tl.load(
            words_ptr
            + ((word // WIDTH)[None, :] * (rows * WIDTH) + row[:, None] * WIDTH)
            + (word % WIDTH)[None, :],
            mask=None if whole else (word < chunks * CHUNK)[None, :],
            other=None if whole else 0,
        )
        words = tl.reshape(words, (BLOCK_ROWS, BLOCK_CHUNKS, CHUNK))

        chunk = start + tl.arange(0, BLOCK_CHUNKS)
        there = None if whole else (chunk < chunks)[None, :]
        tile, place = chunk * CHUNK // WIDTH, chunk * CHUNK % WIDTH
        for g in tl.static_range(GROUPS):
            # [scale] One for all planes of a group; where a word can lie in two blocks, later.
            if ALIGNED:
                group = (tile * TILE // GROUP + g)[None, :]  # of its row
                at, block = group * rows + row[:, None], row[:, None] * (COLUMNS // GROUP) + group
                scale = scale_of(
                    scale_ptr, second_ptr, offset_ptr, table_ptr, at, block, there, None, DOUBLE
                )

            partial = tl.full((BLOCK_ROWS, BLOCK_CHUNKS, CHUNK), 0.0, tl.float32)
            for j in tl.static_range(8 // GROUPS * g, 8 // GROUPS * (g + 1)):
                # [inputs] Read and converted once for all rows of the program.
                column = (tile * TILE + place)[:, None] + j * WIDTH + lane[None, :]
                x = tl.load(
                    x_ptr + token * COLUMNS + column,
                    mask=None if whole else column < COLUMNS,
                    other=None if whole else 0.0,
                ).to(tl.float32)

                # [codes] Levels that follow no formula have to be looked up.
                code = nibble(words, j)
                level = levels(table, code)

                # [products] In a block that may end within a word, the scale is looked up as well:
                # blocks are counted along the flat matrix, in which [r, c] is number r·COLUMNS + c.
                if not ALIGNED:
                    inside = (column < COLUMNS)[None, :, :]
                    block = (row[:, None, None] * COLUMNS + column[None, :, :]) // GROUP
                    level *= scale_of(
                        scale_ptr, second_ptr, offset_ptr, table_ptr, block, block, inside, None,
                        DOUBLE,
                    )  # fmt: skip
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


# ---------------------------------------------------------------------- planes, and tiles of them

# Decoding in machine instructions, two weights at once; see triton_decode. What they compute is
# what the plain lines beside each of them say, which the interpreter runs.
AFFINE_BF16 = tl.constexpr(triton_decode.affine("bf16"))
AFFINE_F16 = tl.constexpr(triton_decode.affine("f16"))
CODEBOOK = tl.constexpr(triton_decode.codebook())
E4M3_BF16 = tl.constexpr(triton_decode.e4m3("bf16"))
E4M3_F16 = tl.constexpr(triton_decode.e4m3("f16"))
PLANES = tl.constexpr("=r,=r,=r,=r,=r,=r,=r,=r,r,r")
PLANES_OF_TABLE = tl.constexpr("=r,=r,=r,=r,=r,=r,=r,=r,r,r" + 16 * ",r")
FOUR_PLANES = tl.constexpr("=r,=r,=r,=r,r,r")


@triton.jit
def code_planes(words, kind: tl.constexpr):
    """The eight planes of words, codes minus 8 in the dtype kind, without rounding."""
    # [planes]
    if INTERPRETED or kind == tl.float32:
        planes = (
            (nibble(words, 0) - 8).to(tl.float32).to(kind),
            (nibble(words, 1) - 8).to(tl.float32).to(kind),
            (nibble(words, 2) - 8).to(tl.float32).to(kind),
            (nibble(words, 3) - 8).to(tl.float32).to(kind),
            (nibble(words, 4) - 8).to(tl.float32).to(kind),
            (nibble(words, 5) - 8).to(tl.float32).to(kind),
            (nibble(words, 6) - 8).to(tl.float32).to(kind),
            (nibble(words, 7) - 8).to(tl.float32).to(kind),
        )
    elif kind == tl.bfloat16:
        planes = tl.inline_asm_elementwise(
            AFFINE_BF16,
            PLANES,
            [words],
            dtype=(
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
                tl.bfloat16,
            ),
            is_pure=True,
            pack=2,
        )
    else:
        planes = tl.inline_asm_elementwise(
            AFFINE_F16,
            PLANES,
            [words],
            dtype=(
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
            ),
            is_pure=True,
            pack=2,
        )
    return planes


@triton.jit
def level_planes(words, table_ptr, bytes_ptr, copy, kind: tl.constexpr):
    """The eight planes of words, levels of the table in the dtype kind.

    The machine instructions find the levels in the bytes of eight registers, which `bytes_ptr` has
    eight times, [8 registers, 8 copies]: read through `copy`, different ones for different
    threads, they stay in each thread's registers; the same for all, they would have to be moved
    there again for every use.
    """
    # [planes]
    if INTERPRETED or kind == tl.float32:
        table = tl.load(table_ptr + tl.arange(0, 16))
        planes = (
            levels(table, nibble(words, 0)).to(kind),
            levels(table, nibble(words, 1)).to(kind),
            levels(table, nibble(words, 2)).to(kind),
            levels(table, nibble(words, 3)).to(kind),
            levels(table, nibble(words, 4)).to(kind),
            levels(table, nibble(words, 5)).to(kind),
            levels(table, nibble(words, 6)).to(kind),
            levels(table, nibble(words, 7)).to(kind),
        )
    else:
        low0 = tl.broadcast_to(tl.load(bytes_ptr + copy), words.shape)
        low1 = tl.broadcast_to(tl.load(bytes_ptr + 8 + copy), words.shape)
        low2 = tl.broadcast_to(tl.load(bytes_ptr + 16 + copy), words.shape)
        low3 = tl.broadcast_to(tl.load(bytes_ptr + 24 + copy), words.shape)
        high0 = tl.broadcast_to(tl.load(bytes_ptr + 32 + copy), words.shape)
        high1 = tl.broadcast_to(tl.load(bytes_ptr + 40 + copy), words.shape)
        high2 = tl.broadcast_to(tl.load(bytes_ptr + 48 + copy), words.shape)
        high3 = tl.broadcast_to(tl.load(bytes_ptr + 56 + copy), words.shape)
        if kind == tl.bfloat16:
            planes = tl.inline_asm_elementwise(
                CODEBOOK,
                PLANES_OF_TABLE,
                [words, low0, low1, low2, low3, high0, high1, high2, high3],
                dtype=(
                    tl.bfloat16,
                    tl.bfloat16,
                    tl.bfloat16,
                    tl.bfloat16,
                    tl.bfloat16,
                    tl.bfloat16,
                    tl.bfloat16,
                    tl.bfloat16,
                ),
                is_pure=True,
                pack=2,
            )
        else:
            planes = tl.inline_asm_elementwise(
                CODEBOOK,
                PLANES_OF_TABLE,
                [words, low0, low1, low2, low3, high0, high1, high2, high3],
                dtype=(
                    tl.float16,
                    tl.float16,
                    tl.float16,
                    tl.float16,
                    tl.float16,
                    tl.float16,
                    tl.float16,
                    tl.float16,
                ),
                is_pure=True,
                pack=2,
            )
    return planes


@triton.jit
def columns_of(planes, TILES: tl.constexpr):
    """Eight planes [rows, TILES·WIDTH] as weights [rows, TILES·8·WIDTH] in the order of the
    columns. Nothing moves: a thread's planes are the columns that it needs, under other names."""
    # [tile]
    rows: tl.constexpr = planes[0].shape[0]
    WIDTH: tl.constexpr = planes[0].shape[1] // TILES
    # Of the number of a plane, the first join makes the highest bit, the last the lowest.
    even = tl.join(tl.join(planes[0], planes[4]), tl.join(planes[2], planes[6]))
    odd = tl.join(tl.join(planes[1], planes[5]), tl.join(planes[3], planes[7]))
    both = tl.reshape(tl.join(even, odd), (rows, TILES, WIDTH, 2, 2, 2))
    return tl.reshape(tl.permute(both, (0, 1, 3, 4, 5, 2)), (rows, TILES * 8 * WIDTH))


@triton.jit
def minus(a, b):
    """a − b in their dtype, rounded once."""
    if INTERPRETED:
        return (a.to(tl.float32) - b.to(tl.float32)).to(a.dtype)
    return a - b


@triton.jit
def times(a, b):
    """a·b in their dtype, rounded once."""
    if INTERPRETED:
        return (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype)
    return a * b


@triton.jit
def multiply(a, b):
    """a·b, matrices of 16-bit floats, sums in float32."""
    if INTERPRETED:
        # The interpreter multiplies the bits of bfloat16 as if they were integers. Products of two
        # 16-bit floats are exact in float32, so nothing else changes.
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def spread(numbers, EACH: tl.constexpr):
    """Numbers [rows, n], each EACH times: [rows, n·EACH]."""
    rows: tl.constexpr = numbers.shape[0]
    n: tl.constexpr = numbers.shape[1]
    return tl.reshape(tl.broadcast_to(numbers[:, :, None], (rows, n, EACH)), (rows, n * EACH))


# ---------------------------------------------------------------------- 4 bits, many tokens


@triton.jit
def four_bit_dot(
    x_ptr,
    words_ptr,
    scale_ptr,
    zero_ptr,
    second_ptr,
    offset_ptr,
    table_ptr,
    bytes_ptr,
    y_ptr,
    tokens,
    rows,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    ZEROS: tl.constexpr,
    TABLE: tl.constexpr,
    DOUBLE: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """y = x·Ŵᵀ for BLOCK_TOKENS tokens and BLOCK_ROWS rows a program, on the tensor cores.

    They multiply matrices of 16-bit numbers: a tile of weights, decoded, is the first, the inputs
    of its 128 columns are the second. Weights come first because that side is 16 rows high or more,
    and the other may have as few as 8 columns: one token wastes 7 of 8, and it costs nothing, since
    the time goes into reading words.

    With SPLIT > 1 the tiles of a row are shared out among as many programs; y is then float32
    [SPLIT, tokens, rows], and `add_splits` adds these up, always in the same order.
    """
    # [rows]
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    part = tl.program_id(2)
    kind: tl.constexpr = x_ptr.dtype.element_ty
    GROUPS: tl.constexpr = 128 // GROUP if GROUP < 128 else 1  # of a tile
    tiles: tl.constexpr = COLUMNS // 128
    steps: tl.constexpr = (tiles + SPLIT - 1) // SPLIT
    here = tl.minimum(row, rows - 1)  # a row that exists; the others are not stored
    total = tl.full((BLOCK_ROWS, BLOCK_TOKENS), 0.0, tl.float32)

    for step in tl.range(0, steps, num_stages=STAGES):
        # The last part may run out of tiles: then its inputs are 0, and so is what they add.
        tile = part * steps + step
        given = tokens
        if tiles % SPLIT != 0:
            given = tl.where(tile < tiles, tokens, 0)
            tile = tl.minimum(tile, tiles - 1)

        # [words] 64 bytes of each row, and those of the next row follow.
        word = tile * (rows * 16) + here[:, None] * 16 + tl.arange(0, 16)[None, :]
        words = tl.load(words_ptr + word, eviction_policy="evict_first")

        # [inputs]
        column = tile * 128 + tl.arange(0, 128)
        x = tl.load(
            x_ptr + token[None, :] * COLUMNS + column[:, None],  # [columns, tokens]
            mask=(token < given)[None, :],
            other=0.0,
            eviction_policy="evict_last",
        )

        # [codes]
        group = (tile * 128 // GROUP + tl.arange(0, GROUPS))[None, :]  # of its row
        at = group * rows + here[:, None]  # [rows, groups]
        if TABLE:
            planes = level_planes(words, table_ptr, bytes_ptr, (here % 8)[:, None], kind)
            weight = columns_of(planes, 1)
        else:
            weight = columns_of(code_planes(words, kind), 1)
            if ZEROS == "integer":  # the difference of two small integers is exact
                zero = (tl.load(zero_ptr + at) - 8.0).to(kind)
                weight = minus(weight, spread(zero, 128 // GROUPS))
            elif ZEROS == "real":
                zero = spread(tl.load(zero_ptr + at) - 8.0, 128 // GROUPS)
                weight = (weight.to(tl.float32) - zero).to(kind)
            elif ZERO != 8.0:
                weight = minus(weight, tl.full(weight.shape, ZERO - 8.0, kind))

        # [scale] With one group to a tile its scale can wait for the sum; with several the weights
        # are multiplied, and rounded, before.
        if GROUPS == 1:
            group = tile * 128 // GROUP
            at, block = group * rows + here, here * (COLUMNS // GROUP) + group
        else:
            block = here[:, None] * (COLUMNS // GROUP) + group
        scale = scale_of(
            scale_ptr, second_ptr, offset_ptr, table_ptr, at, block, None, None, DOUBLE
        )
        after = 1.0
        if GROUPS == 1:
            after = scale[:, None]
        else:
            weight = times(weight, spread(scale.to(kind), 128 // GROUPS))

        # [products] Each is complete before it is added up: left to run on, as `tl.dot(…, total)`
        # would let it, it may still be reading its weights when the next ones are put into the
        # same registers (Triton 3.6, seen on an H100).
        total = tl.fma(multiply(weight, x), after, total)

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
    bytes_ptr,
    weight_ptr,
    rows,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    ZERO: tl.constexpr,
    ZEROS: tl.constexpr,
    TABLE: tl.constexpr,
    ALIGNED: tl.constexpr,
    DOUBLE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TILES: tl.constexpr,
):
    """Ŵ [rows, columns] in the dtype of `weight_ptr`, BLOCK_TILES tiles of BLOCK_ROWS rows a
    program: a quarter is read of what is written, and a product that comes after reads that again.
    Weights are put into the order of the columns first, so that each thread writes 16 bytes of
    neighbours at once; written plane by plane, every few of them would open another line."""
    # [rows] Programs that run at the same time have neighbouring columns.
    step = tl.program_id(0)
    row = tl.program_id(1) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    here = tl.minimum(row, rows - 1)
    kind: tl.constexpr = weight_ptr.dtype.element_ty
    TILE: tl.constexpr = 8 * WIDTH
    tiles: tl.constexpr = (COLUMNS + TILE - 1) // TILE

    # [words]
    word = tl.arange(0, BLOCK_TILES * WIDTH)
    tile = (step * BLOCK_TILES + word // WIDTH)[None, :]
    words = tl.load(
        words_ptr + tile * (rows * WIDTH) + here[:, None] * WIDTH + (word % WIDTH)[None, :],
        mask=tile < tiles,
        other=0,
    )

    # [codes] A scale for each column, as many as there are: the threads of a group read the same.
    column = step * (BLOCK_TILES * TILE) + tl.arange(0, BLOCK_TILES * TILE)
    inside = (column < COLUMNS)[None, :]
    if ALIGNED:
        at = (column // GROUP)[None, :] * rows + here[:, None]
        block = here[:, None] * (COLUMNS // GROUP) + (column // GROUP)[None, :]
    else:
        block = (here[:, None] * COLUMNS + column[None, :]) // GROUP
        at = block
    scale = scale_of(scale_ptr, second_ptr, offset_ptr, table_ptr, at, block, inside, 0, DOUBLE)
    if TABLE:
        planes = level_planes(words, table_ptr, bytes_ptr, (here % 8)[:, None], kind)
        value = columns_of(planes, BLOCK_TILES).to(tl.float32)
    else:
        value = columns_of(code_planes(words, kind), BLOCK_TILES).to(tl.float32)
        if ZEROS == "one":
            value -= ZERO - 8.0
        else:
            value -= tl.load(zero_ptr + at, mask=inside, other=8.0) - 8.0

    # [store]
    tl.store(
        weight_ptr + row[:, None] * COLUMNS + column[None, :],
        (value * scale).to(kind),
        mask=inside & (row < rows)[:, None],
    )


# ---------------------------------------------------------------------- inputs in eight bits


@triton.jit
def row_scale(x_ptr, token, largest, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """The step size of one token: its largest magnitude divided by the largest code, NaN where an
    input
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
    the spacing stops shrinking. Near 1.5·2²⁰·p floats are p/8 apart: adding that rounds. A GPU
    would
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
    exponent and the highest of the mantissa: as bits it is the same number 2¹²⁰× smaller,
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
    BLOCK_CHUNKS: tl.constexpr,
):
    """y = x·Ŵᵀ with E4M3 weights and inputs as they are, one token and BLOCK_ROWS rows a program.

    Four weights make a word, 16 words a tile of 64 columns, [tiles, rows, 16]: byte j of word w is
    column 16·j + w, a plane as those of the 4-bit codes.
    """
    first = tl.minimum(tl.program_id(0) * BLOCK_ROWS, rows - BLOCK_ROWS)
    row = first + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1)
    chunks: tl.constexpr = (COLUMNS + 63) // 64 * 4
    whole: tl.constexpr = COLUMNS % 64 == 0 and chunks % BLOCK_CHUNKS == 0
    lane = tl.arange(0, 4)
    total = tl.full((BLOCK_ROWS, BLOCK_CHUNKS, 4), 0.0, tl.float32)
    for start in range(0, chunks, BLOCK_CHUNKS):
        chunk = start + tl.arange(0, BLOCK_CHUNKS)
        word = start * 4 + tl.arange(0, BLOCK_CHUNKS * 4)
        words = tl.load(
            words_ptr
            + ((word // 16)[None, :] * (rows * 16) + row[:, None] * 16)
            + (word % 16)[None, :],
            mask=None if whole else (word < chunks * 4)[None, :],
            other=None if whole else 0,
        )
        words = tl.reshape(words, (BLOCK_ROWS, BLOCK_CHUNKS, 4))
        for j in tl.static_range(4):
            column = (chunk // 4 * 64 + chunk % 4 * 4)[:, None] + 16 * j + lane[None, :]
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
def e4m3_planes(words, kind: tl.constexpr):
    """The four planes of words of E4M3 numbers, in the dtype kind, which has every one of them."""
    if INTERPRETED:
        planes = (
            e4m3_to_float(words, 0).to(kind),
            e4m3_to_float(words, 1).to(kind),
            e4m3_to_float(words, 2).to(kind),
            e4m3_to_float(words, 3).to(kind),
        )
    elif kind == tl.bfloat16:
        planes = tl.inline_asm_elementwise(
            E4M3_BF16,
            FOUR_PLANES,
            [words],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        planes = tl.inline_asm_elementwise(
            E4M3_F16,
            FOUR_PLANES,
            [words],
            dtype=(tl.float16, tl.float16, tl.float16, tl.float16),
            is_pure=True,
            pack=2,
        )
    return planes


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
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """y = x·Ŵᵀ with E4M3 weights and inputs as they are, for many tokens: every E4M3 number is one
    at 16 bits, too, so nothing is rounded before the tensor cores multiply. As in four_bit_dot,
    the tiles of a row may be shared out, and each product is complete before it is added up."""
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    part = tl.program_id(2)
    here = tl.minimum(row, rows - 1)
    tiles: tl.constexpr = (COLUMNS + 63) // 64
    steps: tl.constexpr = (tiles + SPLIT - 1) // SPLIT
    scale = tl.load(scale_ptr + (here if SCALES == "row" else here * 0)).to(tl.float32)
    total = tl.full((BLOCK_ROWS, BLOCK_TOKENS), 0.0, tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        # The last part may run out of tiles: then its inputs are 0, and so is what they add.
        tile = part * steps + step
        given = tokens
        if tiles % SPLIT != 0:
            given = tl.where(tile < tiles, tokens, 0)
            tile = tl.minimum(tile, tiles - 1)

        word = tile * (rows * 16) + here[:, None] * 16 + tl.arange(0, 16)[None, :]
        words = tl.load(words_ptr + word, eviction_policy="evict_first")
        column = tile * 64 + tl.arange(0, 64)
        x = tl.load(
            x_ptr + token[None, :] * COLUMNS + column[:, None],
            mask=(column < COLUMNS)[:, None] & (token < given)[None, :],
            other=0.0,
            eviction_policy="evict_last",
        )
        planes = e4m3_planes(words, x_ptr.dtype.element_ty)
        both = tl.join(tl.join(planes[0], planes[2]), tl.join(planes[1], planes[3]))
        weight = tl.reshape(tl.permute(both, (0, 2, 3, 1)), (BLOCK_ROWS, 64))
        total = tl.fma(multiply(weight, x), scale[:, None], total)
    at = (part * tokens + token[None, :]) * rows + row[:, None]
    mask = (token < tokens)[None, :] & (row < rows)[:, None]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=mask)
