# Constants of the guest: its addresses, the layout of its control area, numbers of the page
# function. `layout.rs` and `model.rs` hold the same values for the outside; a test compares.

# ---- fixed addresses (identity mapped, load address 1 MiB)
.equ SC_LOAD,       0x100000
.equ SC_GDT,        SC_LOAD + 0x0200     # in the image
.equ SC_STUBS,      SC_LOAD + 0x0600     # exception stubs, 16 bytes each
.equ SC_CALL,       SC_LOAD + 0x08F0     # the ud2 that calls ring 0
.equ SC_IDT,        SC_LOAD + 0x0900
.equ SC_PML4,       SC_LOAD + 0x4000
.equ SC_PDPT,       SC_LOAD + 0x5000
.equ SC_PD0,        SC_LOAD + 0x6000
.equ SC_PD3,        SC_LOAD + 0x7000
.equ SC_HEADER,     0x110000             # control page: header
.equ SC_CPUS,       0x111000             # control pages: one 512-byte block per CPU
.equ SC_CPU_SHIFT,  9
.equ SC_TEXT,       0x115000             # the serial line being built
.equ SC_TEXT_EXC,   0x115800             # the same, for exceptions
.equ SC_TSS0,       0x116000             # CPU 0: TSS with the I/O bitmap (to 0x118069)
.equ SC_PERCPU,     0x120000             # one page per CPU: TSS, kvmclock, stacks
.equ SC_BSS_END,    0x140000
.equ SC_MORE_PDS,   0x200000             # page directories of GiB 1 and up
.equ SC_PAGES,      0x400000             # log rings, then the pages
.equ SC_TRAMPOLINE, 0x8000
.equ SC_TRAMPOLINE_LEN, 64
.equ SC_LAPIC,      0xFEE00000
.equ SC_MAX_CPUS,   32
.equ SC_HOLE,       0xC0000000
.equ SC_COM1,       0x3F8

# ---- per-CPU page
.equ PC_TSS,        0x000
.equ PC_CLOCK,      0x080
.equ PC_STACK0,     0x800                # top of the ring-0 stack
.equ PC_STACK3,     0x1000               # top of the ring-3 stack

# ---- selectors and vectors
.equ SEL_CODE0,     0x08
.equ SEL_DATA,      0x10
.equ SEL_CODE32,    0x18
.equ SEL_DATA3,     0x23
.equ SEL_CODE3,     0x2B
.equ SEL_TSS,       0x40
.equ VEC_TIMER,     0x30
.equ VEC_SPURIOUS,  0x3F
.equ SVC_IDLE,      0
.equ SVC_STOP,      1

# ---- header
.equ H_MAGIC,       0x00
.equ H_LAYOUT,      0x08
.equ H_CPUS,        0x10
.equ H_SEED,        0x18
.equ H_NRAND,       0x20
.equ H_WS_PAGES,    0x28
.equ H_DATA_PAGES,  0x30
.equ H_BASE_PFN,    0x38
.equ H_LOW_PAGES,   0x40
.equ H_RATE,        0x48
.equ H_PATTERN,     0x50
.equ H_HOT,         0x58
.equ H_HOTP,        0x60
.equ H_COMPRESS,    0x68
.equ H_HB,          0x70
.equ H_STATUS,      0x78
.equ H_POLL,        0x80
.equ H_VERIFY,      0x88
.equ H_TAG,         0x90
.equ H_LOG,         0x98
.equ H_POISON,      0xA0
.equ H_TSC_KHZ,     0xA8
.equ H_PM,          0xB0
.equ H_LOG_BASE,    0xB8
.equ H_LOG_ENTRIES, 0xC0
.equ H_GO,          0xC8
.equ H_REQ,         0xD0                 # sweeps asked for
.equ H_REPORTED,    0xD8                 # sweeps reported
.equ H_NEXT_HB,     0xE0
.equ H_NEXT_STATUS, 0xE8
.equ H_NEXT_POLL,   0xF0
.equ H_NEXT_VERIFY, 0xF8
.equ H_LAST_HB,     0x100
.equ H_MAX_GAP,     0x108
.equ H_BEATS,       0x110
.equ H_WS,          0x118                # bytes, as asked
.equ H_DATA,        0x120                # bytes, as asked
.equ H_T_BOOT,      0x128
.equ H_START_INFO,  0x130
.equ H_HOT_LIMIT,   0x138                # hotp as a 32-bit fraction
.equ H_KVMCLOCK,    0x140
.equ H_DEADLINE,    0x148
.equ H_LOW_END,     0x150
.equ H_HIGH_END,    0x158
.equ H_RATE_CPU,    0x160                # rate share of one CPU

# ---- CPU block: three regions (hot or all, cold, data), then the rest
.equ R_BASE,        0x00                 # first logical page
.equ R_N,           0x08
.equ R_MASK,        0x10
.equ R_A,           0x18
.equ R_C,           0x20
.equ R_SHIFT,       0x28
.equ R_X,           0x30
.equ R_POS,         0x38
.equ R_ROUND,       0x40
.equ R_STEPS,       0x48                 # rewrites so far: the only field outsiders need
.equ R_SIZE,        0x60
.equ C_PHASE,       0x120
.equ C_PAGES,       0x128
.equ C_ERRORS,      0x130
.equ C_BACK,        0x138
.equ C_LAST,        0x140
.equ C_SWEEP,       0x148                # last sweep finished
.equ C_SW_ERRORS,   0x150
.equ C_SW_PAGES,    0x158
.equ C_ERR_STATE,   0x160                # 0 none, 1 recorded, 2 printed
.equ C_ERR_PAGE,    0x168
.equ C_ERR_WORD,    0x170
.equ C_ERR_WANT,    0x178
.equ C_ERR_FOUND,   0x180
.equ C_ERR_VERSION, 0x188
.equ C_LOG_COUNT,   0x190
.equ C_RNG,         0x198
.equ C_IT_REGION,   0x1A0
.equ C_IT_X,        0x1A8
.equ C_IT_POS,      0x1B0
.equ C_CREDIT,      0x1B8
.equ C_TICK,        0x1C0
.equ C_LOG_BASE,    0x1C8
.equ C_SW_FIRST,    0x1D0
.equ C_CLOCK,       0x1D8                # address of its kvmclock page
.equ C_ID,          0x1E0
.equ C_SSE,         0x1E8                # first of the values in SSE registers
.equ C_REGS,        0x1F0                # times they were found wrong

.equ PHASE_OFF,     0
.equ PHASE_FILL,    1
.equ PHASE_FILLED,  2
.equ PHASE_RUN,     3
.equ PHASE_VERIFY,  4

# ---- pacing
.equ NS_PER_S,      1000000000
.equ NS_PER_MS,     1000000
.equ IDLE_MIN,      500000               # shorter waits spin
.equ AP_NAP,        100000000            # so that requests are seen
.equ CREDIT_NS,     50000000             # most time that is ever caught up
.equ BATCH,         4                    # pages between two looks at the clock
.equ LOG_ENTRIES,   65536

# ---- numbers of the page function and of the permutation
.equ K_MAGIC,       0x5C12BB1E5C12BB1E
.equ K_PAGE,        0x9E3779B97F4A7C15
.equ K_VERSION,     0xD1342543DE82EF95
.equ K_STEP,        0xA0761D6478BD642F
.equ K_MUL,         0xE7037ED1A0B428DB
.equ K_MIX1,        0xBF58476D1CE4E5B9
.equ K_MIX2,        0x94D049BB133111EB
.equ K_LCG_A,       0x5851F42D4C957F2D
.equ K_LCG_C,       0x14057B7EF767814F
.equ K_HEADER,      0x524C424249524353   # "SCRIBBLR"
