# Time, and the loop of every CPU.

# Nanoseconds of guest time to rax, from the kvmclock page by its version protocol. A step back
# is counted. Clobbers rcx, rdx, r8 to r10.
sc_now:
    mov r8, qword ptr [r15 + C_CLOCK]
2:  mov r9d, dword ptr [r8]
    test r9d, 1                          # being written
    jnz 4f
    lfence
    rdtsc
    shl rdx, 32
    or rax, rdx
    xor edx, edx
    sub rax, qword ptr [r8 + 8]
    cmovs rax, rdx
    movsx ecx, byte ptr [r8 + 28]
    mov r10d, dword ptr [r8 + 24]
    test ecx, ecx
    js 3f
    shl rax, cl
    jmp 5f
3:  neg ecx
    shr rax, cl
5:  mul r10
    shrd rax, rdx, 32
    add rax, qword ptr [r8 + 16]
    cmp r9d, dword ptr [r8]
    jne 2b
    cmp rax, qword ptr [r15 + C_LAST]
    jae 6f
    inc qword ptr [r15 + C_BACK]
6:  mov qword ptr [r15 + C_LAST], rax
    ret
4:  pause
    jmp 2b

# Waits about rdi ns: halts if that is worth it, else a short spin. Clobbers much.
sc_wait:
    cmp rdi, IDLE_MIN
    jb 3f
    mov eax, NS_PER_S                    # a lost timer shall not stop the guest for ever
    cmp rdi, rax
    cmova rdi, rax
    mov rsi, rdi
    mov r8, qword ptr [r15 + C_CLOCK]
    mov r9d, dword ptr [r8 + 24]
    movsx ecx, byte ptr [r8 + 28]
    mov rax, rdi
    shl rax, 32
    xor edx, edx
    div r9
    test ecx, ecx
    js 2f
    shr rax, cl
    jmp 4f
2:  neg ecx
    shl rax, cl
4:  mov rdi, rax
    mov eax, SVC_IDLE
    call sc_call
    ret
3:  mov ecx, 8
5:  pause
    dec ecx
    jnz 5b
    ret

# xmm2 = the value due in the first of xmm4 to xmm15, xmm3 = step to the next. xmm0 to xmm3 are
# scratch. Clobbers rax.
sc_sse_start:
    movq xmm2, qword ptr [r15 + C_SSE]
    punpcklqdq xmm2, xmm2
    mov rax, K_STEP
    movq xmm3, rax
    punpcklqdq xmm3, xmm3
    ret

sc_sse_fill:
    call sc_sse_start
.irp reg, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqa xmm\reg, xmm2
    paddq xmm2, xmm3
.endr
    ret

# A migration must carry the FPU's state, too. Clobbers rax, rcx.
sc_sse_check:
    call sc_sse_start
    pxor xmm0, xmm0
.irp reg, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movdqa xmm1, xmm2
    pxor xmm1, xmm\reg
    por xmm0, xmm1
    paddq xmm2, xmm3
.endr
    movq rax, xmm0
    psrldq xmm0, 8
    movq rcx, xmm0
    or rax, rcx
    jz sc_ret
    inc qword ptr [r15 + C_REGS]
    inc qword ptr [r15 + C_ERRORS]
    jmp sc_sse_fill

sc_loop:
    call sc_now
    mov r13, rax
    call sc_sse_check
    cmp qword ptr [r15 + C_ID], 0
    jne 2f
    call sc_console
2:  mov rax, qword ptr [r15 + C_PHASE]
    cmp eax, PHASE_RUN
    je sc_run
    cmp eax, PHASE_VERIFY
    je sc_sweep
    cmp eax, PHASE_FILLED
    je sc_filled

# PHASE_FILL: version 0 into every page.
    mov ebp, BATCH
3:  call sc_iter_next
    jc 4f
    call sc_page_write
    dec ebp
    jnz 3b
    jmp sc_loop
4:  mov qword ptr [r15 + C_PHASE], PHASE_FILLED
    jmp sc_loop

# PHASE_FILLED: until CPU 0 has seen all CPUs here.
sc_filled:
    pause
    cmp qword ptr [r14 + H_GO], 0
    je sc_loop
    mov qword ptr [r15 + C_TICK], r13
    mov qword ptr [r15 + C_PHASE], PHASE_RUN
    jmp sc_loop

# PHASE_VERIFY: a batch of the sweep.
sc_sweep:
    mov ebp, BATCH
2:  call sc_iter_next
    jc 3f
    call sc_page_check
    inc qword ptr [r15 + C_SW_PAGES]
    dec ebp
    jnz 2b
    jmp sc_loop
3:  mov qword ptr [r15 + C_TICK], r13
    mov qword ptr [r15 + C_PHASE], PHASE_RUN
    inc qword ptr [r15 + C_SWEEP]        # last: CPU 0 reports when all are there
    jmp sc_loop

# PHASE_RUN: rewrite what is due, else wait.
sc_run:
    mov rax, qword ptr [r14 + H_REQ]
    cmp rax, qword ptr [r15 + C_SWEEP]
    je 2f
    mov qword ptr [r15 + C_SW_PAGES], 0
    mov qword ptr [r15 + C_SW_ERRORS], 0
    call sc_iter_start
    mov qword ptr [r15 + C_PHASE], PHASE_VERIFY
    jmp sc_loop
2:  mov rsi, -1                          # ns until the next page is due
    cmp qword ptr [r15 + R_N], 0
    je 6f
    mov ebp, BATCH
    mov rbx, qword ptr [r14 + H_RATE]
    test rbx, rbx
    jz 6f
    cmp rbx, -1
    je 5f
    mov rbx, qword ptr [r14 + H_RATE]
    mov rax, r13                         # credit: pages * ns/s * CPUs
    sub rax, qword ptr [r15 + C_TICK]
    jae 3f
    xor eax, eax
3:  mov qword ptr [r15 + C_TICK], r13
    mov rcx, 2 * NS_PER_S
    cmp rax, rcx
    cmova rax, rcx
    imul rax, rbx
    add rax, qword ptr [r15 + C_CREDIT]
    imul r8, qword ptr [r14 + H_CPUS], NS_PER_S
    imul rcx, rbx, CREDIT_NS
    add rcx, r8
    cmp rax, rcx                         # a pause is not caught up
    cmova rax, rcx
    mov qword ptr [r15 + C_CREDIT], rax
4:  mov rsi, qword ptr [r15 + C_CREDIT]
    imul r8, qword ptr [r14 + H_CPUS], NS_PER_S
    sub rsi, r8
    jb 7f
    mov qword ptr [r15 + C_CREDIT], rsi
    call sc_rewrite
    dec ebp
    jnz 4b
    jmp sc_loop
5:  call sc_rewrite
    dec ebp
    jnz 5b
    jmp sc_loop
7:  mov rax, rsi                         # what is missing, as time
    neg rax
    xor edx, edx
    div qword ptr [r14 + H_RATE]
    mov rsi, rax
6:  mov eax, AP_NAP
    cmp rsi, rax
    cmova rsi, rax
    lea rdi, [r13 + rsi]                 # the next event
    cmp qword ptr [r15 + C_ID], 0
    jne 8f
    call sc_next_event
8:  call sc_now
    sub rdi, rax
    jbe sc_loop
    call sc_wait
    jmp sc_loop
