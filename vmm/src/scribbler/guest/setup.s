# Ring 3 starts here: CPU 0 prepares everything, then wakes the others.
# Throughout ring 3: r14 = header, r15 = this CPU's block.

sc_main:
    cld
    cmp qword ptr [r15 + C_ID], 0
    jne 3f
    call sc_serial_init
    call sc_cmdline
    call sc_clock_init
    call sc_now
    mov qword ptr [r14 + H_T_BOOT], rax
    call sc_check
    call sc_memory
    call sc_page_tables
    call sc_slices
    call sc_header
    call sc_start_aps
    call sc_console_init
    jmp 4f
3:  call sc_clock_init
4:  mov qword ptr [r15 + C_PHASE], PHASE_FILL
    mov rdi, qword ptr [r15 + C_ID]
    mov rsi, qword ptr [r14 + H_SEED]
    call sc_mix2
    mov qword ptr [r15 + C_SSE], rax
    call sc_sse_fill
    call sc_iter_start
    jmp sc_loop

# Without kvmclock: a clock page of our own, from the TSC frequency.
sc_clock_init:
    cmp qword ptr [r14 + H_KVMCLOCK], 0
    jne sc_ret
    mov rcx, qword ptr [r14 + H_TSC_KHZ]
    lea rsi, [rip + sc_e_clock]
    cmp rcx, 125000                      # below it the multiplier overflows
    jb sc_fatal
    shl rcx, 3
    mov rax, 1000000
    shl rax, 32
    xor edx, edx
    div rcx
    mov r8, qword ptr [r15 + C_CLOCK]
    mov dword ptr [r8 + 24], eax
    mov byte ptr [r8 + 28], 3
    cmp qword ptr [r15 + C_ID], 0
    je 2f
    mov rax, qword ptr [SC_PERCPU + PC_CLOCK + 8]
    jmp 3f                               # one origin for all CPUs
2:  rdtsc
    shl rdx, 32
    or rax, rdx
3:  mov qword ptr [r8 + 8], rax
    ret

# Values that the parser let through but make no sense.
sc_check:
    mov rax, qword ptr [r14 + H_CPUS]
    dec rax
    lea rsi, [rip + sc_e_cpus]
    cmp rax, SC_MAX_CPUS
    jae sc_fatal
    lea rsi, [rip + sc_e_percent]
    cmp qword ptr [r14 + H_COMPRESS], 100
    ja sc_fatal
    cmp qword ptr [r14 + H_HOTP], 100
    ja sc_fatal
    mov rax, qword ptr [r14 + H_HOT]
    dec rax
    cmp rax, 99
    jae sc_fatal
    lea rsi, [rip + sc_e_rate]
    mov rax, qword ptr [r14 + H_RATE]
    cmp rax, -1
    je 2f
    cmp rax, 100000000
    ja sc_fatal
2:  lea rsi, [rip + sc_e_time]
    mov rcx, 1000 * NS_PER_S
    cmp qword ptr [r14 + H_STATUS], rcx
    ja sc_fatal
    cmp qword ptr [r14 + H_POLL], rcx
    ja sc_fatal
    mov rax, qword ptr [r14 + H_HB]
    test rax, rax
    jz 3f
    cmp rax, 100000
    jb sc_fatal
    cmp rax, rcx
    ja sc_fatal
3:  ret

# RAM from the PVH memory map: the piece around SC_PAGES, and the piece at 4 GiB.
sc_memory:
    mov rsi, qword ptr [r14 + H_START_INFO]
    lea r8, [rip + sc_e_map]
    cmp dword ptr [rsi + 4], 0           # version 0 has no map
    je 9f
    mov ecx, dword ptr [rsi + 48]
    mov rsi, qword ptr [rsi + 40]
    xor r9d, r9d                         # end of low RAM
    mov r10, 0x100000000                 # end of high RAM
    mov r11, r10
2:  dec ecx
    js 5f
    cmp dword ptr [rsi + 16], 1          # RAM
    jne 4f
    mov rax, qword ptr [rsi]
    mov rdx, qword ptr [rsi + 8]
    add rdx, rax
    cmp rax, r11
    je 3f
    cmp rax, SC_PAGES
    ja 4f
    cmp rdx, SC_PAGES
    jbe 4f
    mov r9, rdx
    jmp 4f
3:  mov r10, rdx
4:  add rsi, 24
    jmp 2b
5:  mov eax, SC_HOLE                     # between it and 4 GiB RAM is not used
    cmp r9, rax
    cmova r9, rax
    mov rax, 0x8000000000                # one page of directory pointers
    cmp r10, rax
    cmova r10, rax
    and r9, -4096
    and r10, -4096
    mov qword ptr [r14 + H_LOW_END], r9
    mov qword ptr [r14 + H_HIGH_END], r10
    mov eax, SC_PAGES                    # log rings first
    mov qword ptr [r14 + H_LOG_BASE], rax
    mov qword ptr [r14 + H_LOG_ENTRIES], 0
    cmp qword ptr [r14 + H_LOG], 0
    je 6f
    mov qword ptr [r14 + H_LOG_ENTRIES], LOG_ENTRIES
    mov rcx, qword ptr [r14 + H_CPUS]
    imul rcx, rcx, LOG_ENTRIES * 8
    add rax, rcx
6:  shr rax, 12
    mov qword ptr [r14 + H_BASE_PFN], rax
    shr r9, 12
    lea r8, [rip + sc_e_fit]
    sub r9, rax
    jbe 9f
    mov qword ptr [r14 + H_LOW_PAGES], r9
    sub r10, r11
    shr r10, 12
    add r9, r10                          # pages there are
    mov rax, qword ptr [r14 + H_WS]
    cmp rax, -1
    jne 7f
    mov rax, r9                          # default: half of RAM
    shl rax, 11
7:  shr rax, 12
    mov rcx, qword ptr [r14 + H_DATA]
    shr rcx, 12
    mov qword ptr [r14 + H_WS_PAGES], rax
    mov qword ptr [r14 + H_DATA_PAGES], rcx
    add rax, rcx
    jc 9f
    cmp rax, r9
    ja 9f
    lea r8, [rip + sc_e_few]
    mov rax, qword ptr [r14 + H_WS_PAGES]
    test rax, rax
    jz sc_ret
    mov rcx, qword ptr [r14 + H_CPUS]    # two pages a CPU: a hot one and a cold one
    shl rcx, 1
    cmp rax, rcx
    jae sc_ret
9:  mov rsi, r8
    jmp sc_fatal

# Page directories for the GiB above the first, as far as RAM goes.
sc_page_tables:
    mov r8, qword ptr [r14 + H_HIGH_END]
    mov rax, 0x100000000
    cmp r8, rax
    jne 2f
    mov r8, qword ptr [r14 + H_LOW_END]
2:  mov r9d, 1
3:  mov rax, r9
    shl rax, 30
    cmp rax, r8
    jae sc_ret
    cmp r9d, 3                           # LAPIC; its RAM is not used
    je 5f
    mov rdi, r9
    shl rdi, 12
    add rdi, SC_MORE_PDS
    mov rdx, rdi
    add rax, 0xE7
    mov ecx, 512
4:  mov qword ptr [rdi], rax
    add rax, 0x200000
    add rdi, 8
    dec ecx
    jnz 4b
    or rdx, 0x27                         # full before it is linked: KVM shadows it once
    mov qword ptr [SC_PDPT + r9 * 8], rdx
5:  inc r9d
    jmp 3b

# Every CPU's regions.
sc_slices:
    xor ebp, ebp
2:  mov r13, rbp
    shl r13, SC_CPU_SHIFT
    add r13, SC_CPUS
    mov rax, qword ptr [r14 + H_WS_PAGES]
    call sc_slice                        # rdi = first, rsi = count
    mov rdx, qword ptr [r14 + H_PATTERN]
    cmp edx, 2
    jne 3f
    push rdi
    push rsi
    mov rax, rsi                         # hot part, at least a page
    mul qword ptr [r14 + H_HOT]
    mov ecx, 100
    div rcx
    cmp rax, 1
    adc rax, 0
    cmp rax, rsi                         # empty working set
    cmova rax, rsi
    mov rsi, rax
    mov edx, 1
    mov rbx, r13
    push rax
    call sc_region
    pop rax
    pop rsi
    pop rdi
    add rdi, rax
    sub rsi, rax
    mov edx, 1
    lea rbx, [r13 + R_SIZE]
    call sc_region
    jmp 4f
3:  mov rbx, r13
    call sc_region
    lea rbx, [r13 + R_SIZE]
    xor esi, esi
    call sc_region
4:  mov rax, qword ptr [r14 + H_DATA_PAGES]
    call sc_slice
    add rdi, qword ptr [r14 + H_WS_PAGES]
    xor edx, edx
    lea rbx, [r13 + 2 * R_SIZE]
    call sc_region
    mov rax, rbp                         # log ring
    imul rax, rax, LOG_ENTRIES * 8
    add rax, qword ptr [r14 + H_LOG_BASE]
    mov qword ptr [r13 + C_LOG_BASE], rax
    mov rdi, rbp
    mov rsi, qword ptr [r14 + H_SEED]
    call sc_mix2
    mov qword ptr [r13 + C_RNG], rax
    mov qword ptr [r13 + C_LAST], 0
    inc ebp
    cmp rbp, qword ptr [r14 + H_CPUS]
    jb 2b
    ret

# CPU rbp's slice of rax pages: rdi = first, rsi = count.
sc_slice:
    mov rcx, rax
    imul rax, rbp
    xor edx, edx
    div qword ptr [r14 + H_CPUS]
    mov rdi, rax
    lea rax, [rbp + 1]
    imul rax, rcx
    xor edx, edx
    div qword ptr [r14 + H_CPUS]
    mov rsi, rax
    sub rsi, rdi
    ret

# Region rbx: rdi = first page, rsi = count, edx = 0 in order, else permuted.
sc_region:
    mov qword ptr [rbx + R_BASE], rdi
    mov qword ptr [rbx + R_N], rsi
    mov eax, 1                           # period: the next power of two
    xor ecx, ecx
2:  cmp rax, rsi
    jae 3f
    shl rax, 1
    inc ecx
    jmp 2b
3:  dec rax
    mov qword ptr [rbx + R_MASK], rax
    mov rax, 1
    mov r8d, 1
    mov r9d, 63
    test edx, edx
    jz 4f
    mov rax, K_LCG_A
    mov r8, K_LCG_C
    lea r9d, [rcx + 1]
    shr r9d, 1
    cmp r9d, 1
    adc r9d, 0
4:  mov qword ptr [rbx + R_A], rax
    mov qword ptr [rbx + R_C], r8
    mov qword ptr [rbx + R_SHIFT], r9
    xor edi, edi
    call sc_round_start
    mov qword ptr [rbx + R_X], rax
    ret

# What follows from the parameters, and the magic last: the control page is valid from then on.
sc_header:
    mov eax, 100
    sub rax, qword ptr [r14 + H_COMPRESS]
    imul rax, rax, 508
    xor edx, edx
    mov ecx, 100
    div rcx
    and rax, -4
    mov qword ptr [r14 + H_NRAND], rax
    mov rax, qword ptr [r14 + H_HOTP]
    shl rax, 32
    xor edx, edx
    div rcx
    mov qword ptr [r14 + H_HOT_LIMIT], rax
    mov qword ptr [r14 + H_LAYOUT], 1
    mov rax, K_HEADER
    mov qword ptr [r14 + H_MAGIC], rax
    ret

# INIT to all, then start-up interrupts until each has come.
sc_start_aps:
    mov rcx, qword ptr [r14 + H_CPUS]
    cmp rcx, 1
    je sc_ret
    lea rsi, [rip + sc_trampoline]
    mov edi, SC_TRAMPOLINE
    mov ecx, SC_TRAMPOLINE_LEN
    rep movsb
    mov ebp, 1
2:  mov edx, 0x4500
    call sc_ipi
    inc ebp
    cmp rbp, qword ptr [r14 + H_CPUS]
    jb 2b
    mov edi, NS_PER_MS
    call sc_delay
    mov ebx, 20                          # rounds of 100 ms
3:  mov ebp, 1
    xor r12d, r12d                       # missing
4:  mov rax, rbp
    shl rax, SC_CPU_SHIFT
    cmp qword ptr [rax + SC_CPUS + C_PHASE], PHASE_OFF
    jne 5f
    inc r12d
    mov edx, 0x4600 + (SC_TRAMPOLINE >> 12)
    call sc_ipi
5:  inc ebp
    cmp rbp, qword ptr [r14 + H_CPUS]
    jb 4b
    test r12d, r12d
    jz sc_ret
    mov r12d, 100
6:  mov edi, NS_PER_MS                   # look each ms whether the last one is there
    call sc_delay
    cmp qword ptr [rax + SC_CPUS + C_PHASE], PHASE_OFF
    jne 3b
    dec r12d
    jnz 6b
    dec ebx
    jnz 3b
    lea rsi, [rip + sc_e_ap]
    jmp sc_fatal

# Interrupt command edx to CPU ebp. Clobbers rax, rcx.
sc_ipi:
    mov ecx, SC_LAPIC
    mov eax, ebp
    shl eax, 24
    mov dword ptr [rcx + 0x310], eax
    mov dword ptr [rcx + 0x300], edx
    ret

# Waits rdi ns; then rax = block offset of the last CPU.
sc_delay:
    call sc_now
    add rdi, rax
2:  pause
    call sc_now
    cmp rax, rdi
    jb 2b
    mov rax, qword ptr [r14 + H_CPUS]
    dec rax
    shl rax, SC_CPU_SHIFT
    ret

sc_e_clock: .asciz "no kvmclock and no TSC frequency: give tsc_khz= (125000 or more)"
sc_e_cpus: .asciz "cpus= must be 1 to 32"
sc_e_percent: .asciz "compress= and hotp= must be 0 to 100, hot= 1 to 99"
sc_e_rate: .asciz "rate= must be at most 100000000 pages a second, or max"
sc_e_time: .asciz "hb= must be 0 or 100us to 1000s; status= and poll= at most 1000s"
sc_e_map: .asciz "the start info has no memory map (version 0)"
sc_e_fit: .asciz "data= and ws= do not fit into RAM (4 MiB and the log are taken)"
sc_e_few: .asciz "ws= must be 0 or at least two pages a CPU"
sc_e_ap: .asciz "a CPU did not start"
