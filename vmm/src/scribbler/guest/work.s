# Pages and permutations: what a page holds, which page is next, checking and rewriting.

# Finaliser of splitmix: rax to rax. Clobbers rcx.
.macro SC_MIX
    mov rcx, rax
    shr rcx, 30
    xor rax, rcx
    mov rcx, K_MIX1
    imul rax, rcx
    mov rcx, rax
    shr rcx, 27
    xor rax, rcx
    mov rcx, K_MIX2
    imul rax, rcx
    mov rcx, rax
    shr rcx, 31
    xor rax, rcx
.endm

# Next word of a page's stream to rax: r8 = counter, r11 = K_STEP, r9 = K_MUL. Clobbers rcx.
.macro SC_WORD
    mov rax, r8
    add r8, r11
    mov rcx, rax
    shr rcx, 32
    xor rax, rcx
    imul rax, r9
    mov rcx, rax
    shr rcx, 29
    xor rax, rcx
.endm

# rax = mix(rsi + rdi * K_PAGE). Clobbers rcx.
sc_mix2:
    mov rax, K_PAGE
    imul rax, rdi
    add rax, rsi
    SC_MIX
    ret

# State at the start of round rdi of region rbx, to rax. Clobbers rcx, rsi.
sc_round_start:
    xor eax, eax
    cmp qword ptr [rbx + R_A], 1
    je sc_ret
    mov rsi, qword ptr [r14 + H_SEED]
    call sc_mix2
    and rax, qword ptr [rbx + R_MASK]
    ret

# From state rax of region rbx: rax = page within the region, rdx = next state. A generator of
# full period modulo a power of two, scrambled one to one; values beyond the region are skipped.
sc_walk:
    mov rcx, qword ptr [rbx + R_SHIFT]
2:  mov rdx, rax
    shr rdx, cl
    xor rdx, rax
    imul rax, qword ptr [rbx + R_A]
    add rax, qword ptr [rbx + R_C]
    and rax, qword ptr [rbx + R_MASK]
    cmp rdx, qword ptr [rbx + R_N]
    jae 2b
    xchg rax, rdx
    ret

# Logical page rax to guest page number in rsi and its address in rdi. Clobbers rax.
sc_place:
    mov rsi, rax
    sub rsi, qword ptr [r14 + H_LOW_PAGES]
    jae 2f
    mov rsi, rax
    add rsi, qword ptr [r14 + H_BASE_PFN]
    mov rdi, rsi
    shl rdi, 12
    ret
2:  add rsi, 0x100000                    # 4 GiB
    mov rdi, rsi
    shl rdi, 12
    ret

# Common start of writing and checking: rsi = page number, rdx = version. r10 = key, and the
# stream's registers; rcx = end of the stream, for a page at rdi.
sc_page_start:
    mov rax, K_PAGE
    imul rax, rsi
    add rax, qword ptr [r14 + H_SEED]
    SC_MIX
    mov r10, rax
    mov rax, K_VERSION
    imul rax, rdx
    add rax, r10
    SC_MIX
    mov r10, rax
    mov r11, K_STEP
    mov r9, K_MUL
    lea r8, [rax + r11 * 4]              # word 4 is the first of the stream
    mov rcx, qword ptr [r14 + H_NRAND]
    lea rcx, [rdi + rcx * 8 + 32]
    mov rax, K_MAGIC
    xor rax, qword ptr [r14 + H_SEED]
    ret

# Writes the page at rdi: rsi = page number, rdx = version.
sc_page_write:
    call sc_page_start
    mov qword ptr [rdi], rax
    mov qword ptr [rdi + 8], rsi
    mov qword ptr [rdi + 16], rdx
    mov qword ptr [rdi + 24], r10
    mov rsi, rcx
    lea rdx, [rdi + 4096]
    add rdi, 32
    jmp 3f
2:  SC_WORD
    mov qword ptr [rdi], rax
    SC_WORD
    mov qword ptr [rdi + 8], rax
    SC_WORD
    mov qword ptr [rdi + 16], rax
    SC_WORD
    mov qword ptr [rdi + 24], rax
    add rdi, 32
3:  cmp rdi, rsi
    jb 2b
    jmp 5f
4:  mov qword ptr [rdi], r10             # the compressible rest: one word, still the version's
    mov qword ptr [rdi + 8], r10
    mov qword ptr [rdi + 16], r10
    mov qword ptr [rdi + 24], r10
    add rdi, 32
5:  cmp rdi, rdx
    jb 4b
    ret

# Checks every word of the page at rdi: rsi = page number, rdx = version. A wrong page is
# counted, the first one kept; rax = 0 if it was right. Preserves rdi, rsi, rdx.
sc_page_check:
    push rdi
    push rsi
    push rdx
    call sc_page_start
    mov r12, rdx                         # r12 collects differences
    xor r12, qword ptr [rdi + 16]
    xor rax, qword ptr [rdi]
    or r12, rax
    xor rsi, qword ptr [rdi + 8]
    or r12, rsi
    mov rax, r10
    xor rax, qword ptr [rdi + 24]
    or r12, rax
    mov rsi, rcx
    lea rdx, [rdi + 4096]
    add rdi, 32
    jmp 3f
2:  SC_WORD
    xor rax, qword ptr [rdi]
    or r12, rax
    SC_WORD
    xor rax, qword ptr [rdi + 8]
    or r12, rax
    SC_WORD
    xor rax, qword ptr [rdi + 16]
    or r12, rax
    SC_WORD
    xor rax, qword ptr [rdi + 24]
    or r12, rax
    add rdi, 32
3:  cmp rdi, rsi
    jb 2b
    jmp 5f
4:  mov rax, r10
    xor rax, qword ptr [rdi]
    or r12, rax
    mov rax, r10
    xor rax, qword ptr [rdi + 8]
    or r12, rax
    mov rax, r10
    xor rax, qword ptr [rdi + 16]
    or r12, rax
    mov rax, r10
    xor rax, qword ptr [rdi + 24]
    or r12, rax
    add rdi, 32
5:  cmp rdi, rdx
    jb 4b
    pop rdx
    pop rsi
    pop rdi
    mov rax, r12
    test rax, rax
    jnz sc_mismatch
    ret

# The slow way through a wrong page, for its first wrong word.
sc_mismatch:
    inc qword ptr [r15 + C_ERRORS]
    inc qword ptr [r15 + C_SW_ERRORS]
    cmp qword ptr [r15 + C_SW_ERRORS], 1
    jne 2f
    mov qword ptr [r15 + C_SW_FIRST], rsi
2:  cmp qword ptr [r15 + C_ERR_STATE], 0
    jne 9f
    mov qword ptr [r15 + C_ERR_PAGE], rsi
    mov qword ptr [r15 + C_ERR_VERSION], rdx
    push rdi
    push rsi
    push rdx
    call sc_page_start
    xor r12d, r12d                       # word
    mov rdx, rcx
3:  cmp r12d, 1
    jb 6f                                # word 0: rax is the magic
    mov rax, rsi
    je 6f
    mov rax, qword ptr [rsp]             # version
    cmp r12d, 2
    je 6f
    mov rax, r10
    cmp r12d, 3
    je 6f
    cmp rdi, rdx
    jae 6f
    SC_WORD
6:  cmp rax, qword ptr [rdi]
    jne 7f
    add rdi, 8
    inc r12d
    cmp r12d, 512
    jb 3b
7:  mov qword ptr [r15 + C_ERR_WORD], r12
    mov qword ptr [r15 + C_ERR_WANT], rax
    mov rax, qword ptr [rdi]
    mov qword ptr [r15 + C_ERR_FOUND], rax
    mov qword ptr [r15 + C_ERR_STATE], 1 # last: CPU 0 prints on seeing it
    pop rdx
    pop rsi
    pop rdi
9:  mov eax, 1
    ret

# Checks and rewrites the next page of this CPU's working set.
sc_rewrite:
    mov rbx, r15
    cmp qword ptr [r15 + R_SIZE + R_N], 0
    je 2f
    mov rax, qword ptr [r15 + C_RNG]     # hot or cold
    mov rcx, K_LCG_A
    imul rax, rcx
    mov rcx, K_LCG_C
    add rax, rcx
    mov qword ptr [r15 + C_RNG], rax
    shr rax, 32
    cmp rax, qword ptr [r14 + H_HOT_LIMIT]
    jb 2f
    add rbx, R_SIZE
2:  mov rax, qword ptr [rbx + R_X]
    call sc_walk
    push rdx
    add rax, qword ptr [rbx + R_BASE]
    call sc_place
    mov rdx, qword ptr [rbx + R_ROUND]
    call sc_page_check
    cmp qword ptr [r14 + H_LOG], 0
    je 3f
    mov rax, qword ptr [r15 + C_LOG_COUNT]
    movzx ecx, ax                        # modulo LOG_ENTRIES
    mov r8, qword ptr [r15 + C_LOG_BASE]
    mov qword ptr [r8 + rcx * 8], rsi    # before the write: the log never misses one
    inc rax
    mov qword ptr [r15 + C_LOG_COUNT], rax
3:  inc rdx
    call sc_page_write
    pop rdx
    inc qword ptr [r15 + C_PAGES]
    mov rax, qword ptr [rbx + R_POS]
    inc rax
    cmp rax, qword ptr [rbx + R_N]
    jb 4f
    mov rdi, qword ptr [rbx + R_ROUND]   # next round
    inc rdi
    mov qword ptr [rbx + R_ROUND], rdi
    call sc_round_start
    mov rdx, rax
    xor eax, eax
4:  mov qword ptr [rbx + R_POS], rax
    mov qword ptr [rbx + R_X], rdx
    inc qword ptr [rbx + R_STEPS]        # last: outsiders derive round and position from it
    ret

# An iterator over all of this CPU's pages, each region in the order of its current round.
sc_iter_start:
    mov qword ptr [r15 + C_IT_REGION], 0
sc_iter_region:
    mov qword ptr [r15 + C_IT_POS], 0
    imul rbx, qword ptr [r15 + C_IT_REGION], R_SIZE
    add rbx, r15
    mov rdi, qword ptr [rbx + R_ROUND]
    call sc_round_start
    mov qword ptr [r15 + C_IT_X], rax
    ret

# Next: rbx = region, rdi = address, rsi = page number, rdx = the version due. Carry at the end.
sc_iter_next:
    imul rbx, qword ptr [r15 + C_IT_REGION], R_SIZE
    add rbx, r15
    mov rax, qword ptr [r15 + C_IT_POS]
    cmp rax, qword ptr [rbx + R_N]
    jb 2f
    cmp qword ptr [r15 + C_IT_REGION], 2
    je 3f
    inc qword ptr [r15 + C_IT_REGION]
    call sc_iter_region
    jmp sc_iter_next
2:  inc qword ptr [r15 + C_IT_POS]
    mov r8, qword ptr [rbx + R_ROUND]
    cmp rax, qword ptr [rbx + R_POS]
    adc r8, 0                            # visited in this round: one version more
    mov rax, qword ptr [r15 + C_IT_X]
    call sc_walk
    mov qword ptr [r15 + C_IT_X], rdx
    add rax, qword ptr [rbx + R_BASE]
    call sc_place
    mov rdx, r8
    clc
    ret
3:  stc
    ret
