# What only CPU 0 does: heartbeat, status, input, reports. r13 = now.

sc_console_init:
    mov rax, qword ptr [r14 + H_T_BOOT]
    mov qword ptr [r14 + H_LAST_HB], rax
    mov qword ptr [r14 + H_NEXT_HB], rax
    mov qword ptr [r14 + H_NEXT_POLL], rax
    add rax, qword ptr [r14 + H_STATUS]
    mov qword ptr [r14 + H_NEXT_STATUS], rax
    mov qword ptr [r14 + H_NEXT_VERIFY], -1
    mov rdx, qword ptr [r14 + H_PM]
    test edx, edx
    jz sc_ret
    add edx, 2
    mov eax, 0x100                       # power button enabled: some VMMs want it
    out dx, ax
    ret

# Is it time? r8 = address of the next time, rcx = period; carry if so, and the next time is set.
# Missed ones are not made up for; a time too far ahead (the clock went back) is pulled in.
sc_due:
    test rcx, rcx
    jz 4f
    mov rax, qword ptr [r8]
    cmp r13, rax
    jae 2f
    sub rax, r13
    cmp rcx, rax
    jae 4f
    lea rax, [r13 + rcx]
    mov qword ptr [r8], rax
4:  clc
    ret
2:  add rax, rcx
    cmp rax, r13
    ja 3f
    lea rax, [r13 + rcx]
3:  mov qword ptr [r8], rax
    stc
    ret

sc_console:
    lea r8, [r14 + H_NEXT_HB]
    mov rcx, qword ptr [r14 + H_HB]
    call sc_due
    jnc 2f
    mov rax, r13
    sub rax, qword ptr [r14 + H_LAST_HB]
    mov qword ptr [r14 + H_LAST_HB], r13
    cmp rax, qword ptr [r14 + H_MAX_GAP]
    cmovb rax, qword ptr [r14 + H_MAX_GAP]
    mov qword ptr [r14 + H_MAX_GAP], rax
    inc qword ptr [r14 + H_BEATS]
    mov eax, dword ptr [r14 + H_TAG]
    mov edx, SC_COM1
    out dx, al
2:  lea r8, [r14 + H_NEXT_POLL]
    mov rcx, qword ptr [r14 + H_POLL]
    call sc_due
    jnc 3f
    call sc_input
3:  cmp qword ptr [r14 + H_GO], 0
    jne 4f
    call sc_ready
    jmp 6f
4:  mov rax, qword ptr [r14 + H_REQ]
    cmp rax, qword ptr [r14 + H_REPORTED]
    je 5f
    call sc_report
    jmp 6f
5:  lea r8, [r14 + H_NEXT_VERIFY]
    mov rcx, qword ptr [r14 + H_VERIFY]
    call sc_due
    jnc 6f
    inc qword ptr [r14 + H_REQ]
6:  lea r8, [r14 + H_NEXT_STATUS]
    mov rcx, qword ptr [r14 + H_STATUS]
    call sc_due
    jnc sc_ret

# A status line, and before it the first mismatch of each CPU.
sc_status:
    call sc_first_errors
    call sc_line
    lea rsi, [rip + sc_s_t]
    call sc_puts
    mov rax, r13
    sub rax, qword ptr [r14 + H_T_BOOT]
    xor edx, edx
    mov ecx, NS_PER_MS
    div rcx
    call sc_putn
    mov ebx, C_PAGES
    call sc_sum
    push rax
    xor edx, edx
    mov rcx, qword ptr [r14 + H_WS_PAGES]
    cmp rcx, 1                           # no working set
    adc rcx, 0
    div rcx
    lea rsi, [rip + sc_s_rounds]
    call sc_field
    pop rax
    lea rsi, [rip + sc_s_pages]
    call sc_field
    mov ebx, C_ERRORS
    call sc_sum
    lea rsi, [rip + sc_s_errors]
    call sc_field
    mov rax, qword ptr [r14 + H_REPORTED]
    lea rsi, [rip + sc_s_sweep]
    call sc_field
    mov ebx, C_BACK
    call sc_sum
    lea rsi, [rip + sc_s_back]
    call sc_field
    mov ebx, C_REGS
    call sc_sum
    lea rsi, [rip + sc_s_regs]
    call sc_field
    mov rax, qword ptr [r14 + H_BEATS]
    lea rsi, [rip + sc_s_hb]
    call sc_field
    mov rax, qword ptr [r14 + H_MAX_GAP]
    mov qword ptr [r14 + H_MAX_GAP], 0
    xor edx, edx
    mov ecx, 1000
    div rcx
    lea rsi, [rip + sc_s_gap]
    call sc_field
    call sc_nl
    jmp sc_flush

# Sum of field ebx over the CPUs, to rax. Clobbers rcx, rdx.
sc_sum:
    xor eax, eax
    mov rcx, qword ptr [r14 + H_CPUS]
    add ebx, SC_CPUS
2:  add rax, qword ptr [rbx]
    add rbx, 1 << SC_CPU_SHIFT
    dec rcx
    jnz 2b
    ret

sc_first_errors:
    mov rbp, qword ptr [r14 + H_CPUS]
    mov ebx, SC_CPUS
2:  cmp qword ptr [rbx + C_ERR_STATE], 1
    jne 3f
    mov qword ptr [rbx + C_ERR_STATE], 2
    call sc_line
    lea rsi, [rip + sc_s_mismatch]
    mov rax, qword ptr [rbx + C_ERR_PAGE]
    call sc_field
    lea rsi, [rip + sc_s_word]
    mov rax, qword ptr [rbx + C_ERR_WORD]
    call sc_field
    lea rsi, [rip + sc_s_want]
    call sc_puts
    mov rax, qword ptr [rbx + C_ERR_WANT]
    call sc_putx
    lea rsi, [rip + sc_s_found]
    call sc_puts
    mov rax, qword ptr [rbx + C_ERR_FOUND]
    call sc_putx
    lea rsi, [rip + sc_s_version]
    mov rax, qword ptr [rbx + C_ERR_VERSION]
    call sc_field
    call sc_nl
    call sc_flush
3:  add rbx, 1 << SC_CPU_SHIFT
    dec rbp
    jnz 2b
    ret

# All filled? Then poison if asked, say so, and let them run.
sc_ready:
    mov rcx, qword ptr [r14 + H_CPUS]
    mov ebx, SC_CPUS
2:  cmp qword ptr [rbx + C_PHASE], PHASE_FILLED
    jne sc_ret
    add rbx, 1 << SC_CPU_SHIFT
    dec rcx
    jnz 2b
    mov rbp, qword ptr [r14 + H_WS_PAGES]
    add rbp, qword ptr [r14 + H_DATA_PAGES]
    mov rax, qword ptr [r14 + H_POISON]
    cmp rax, rbp
    jae 3f
    call sc_place
    btc dword ptr [rdi + 2048], 5
3:  mov rax, qword ptr [r14 + H_VERIFY]
    add rax, r13
    mov qword ptr [r14 + H_NEXT_VERIFY], rax
    call sc_line
    lea rsi, [rip + sc_s_ready]
    mov rax, qword ptr [r14 + H_CPUS]
    call sc_field
    lea rsi, [rip + sc_s_pages]
    mov rax, rbp
    call sc_field
    lea rsi, [rip + sc_s_ws]
    mov rax, qword ptr [r14 + H_WS_PAGES]
    call sc_field
    lea rsi, [rip + sc_s_clock]
    mov rax, qword ptr [r14 + H_KVMCLOCK]
    call sc_field
    lea rsi, [rip + sc_s_fill]
    mov rax, r13
    sub rax, qword ptr [r14 + H_T_BOOT]
    xor edx, edx
    mov ecx, NS_PER_MS
    div rcx
    call sc_field
    call sc_nl
    call sc_flush
    mov qword ptr [r14 + H_GO], 1
    ret

# The sweep's result, once all CPUs are through.
sc_report:
    mov rcx, qword ptr [r14 + H_CPUS]
    mov ebx, SC_CPUS
    mov rdi, -1                          # first bad page
2:  cmp qword ptr [rbx + C_SWEEP], rax
    jne sc_ret
    cmp qword ptr [rbx + C_SW_ERRORS], 0
    je 3f
    cmp rdi, -1
    cmove rdi, qword ptr [rbx + C_SW_FIRST]
3:  add rbx, 1 << SC_CPU_SHIFT
    dec rcx
    jnz 2b
    mov qword ptr [r14 + H_REPORTED], rax
    call sc_first_errors
    mov ebx, C_ERRORS
    call sc_sum
    mov rbp, rax                         # ever, not only now: only that proves anything
    mov ebx, C_SW_PAGES
    call sc_sum
    push rax
    call sc_line
    lea rsi, [rip + sc_s_ok]
    mov rdx, qword ptr [r14 + H_WS_PAGES]
    add rdx, qword ptr [r14 + H_DATA_PAGES]
    xor rdx, rax                         # a sweep that missed a page is no proof
    or rdx, rbp
    mov rbx, rdx
    jz 4f
    lea rsi, [rip + sc_s_bad_sweep]
4:  pop rax
    call sc_field
    lea rsi, [rip + sc_s_errors]
    mov rax, rbp
    call sc_field
    test rbx, rbx
    jz 5f
    mov ebx, C_SW_ERRORS
    call sc_sum
    lea rsi, [rip + sc_s_now]
    call sc_field
    cmp rdi, -1
    je 5f
    lea rsi, [rip + sc_s_first]
    mov rax, rdi
    call sc_field
5:  lea rsi, [rip + sc_s_sweep]
    mov rax, qword ptr [r14 + H_REPORTED]
    call sc_field
    call sc_nl
    jmp sc_flush

# Keys, and the power button.
sc_input:
    mov edx, SC_COM1 + 5
    in al, dx
    test al, 1
    jz 5f
    mov edx, SC_COM1
    in al, dx
    cmp al, 115                          # s
    jne 2f
    call sc_status
    jmp sc_input
2:  cmp al, 113                          # q
    je sc_power_off
    cmp al, 118                          # v
    jne sc_input
    cmp qword ptr [r14 + H_GO], 0        # not before all pages are there
    je sc_input
    mov rax, qword ptr [r14 + H_REQ]     # one at a time; the answer serves both
    cmp rax, qword ptr [r14 + H_REPORTED]
    jne sc_input
    inc qword ptr [r14 + H_REQ]
    jmp sc_input
5:  mov rdx, qword ptr [r14 + H_PM]
    test edx, edx
    jz sc_ret
    in ax, dx
    test ah, 1                           # power button
    jz sc_ret
    mov eax, 0x100
    out dx, ax
sc_power_off:
    call sc_line
    lea rsi, [rip + sc_s_off]
    call sc_puts
    call sc_flush
    mov rdx, qword ptr [r14 + H_PM]
    test edx, edx
    jz 2f
    add edx, 4
    mov eax, (5 << 10) | (1 << 13)       # S5
    out dx, ax
    jmp 3f
2:  mov al, 0xFE                         # reset by the keyboard controller
    out 0x64, al
3:  mov eax, SVC_STOP
    call sc_call

# rdi = next event so far; the console's own are taken into account. Clobbers rax.
sc_next_event:
    cmp qword ptr [r14 + H_HB], 0
    je 2f
    cmp rdi, qword ptr [r14 + H_NEXT_HB]
    cmova rdi, qword ptr [r14 + H_NEXT_HB]
2:  cmp qword ptr [r14 + H_POLL], 0
    je 3f
    cmp rdi, qword ptr [r14 + H_NEXT_POLL]
    cmova rdi, qword ptr [r14 + H_NEXT_POLL]
3:  cmp qword ptr [r14 + H_STATUS], 0
    je sc_ret
    cmp rdi, qword ptr [r14 + H_NEXT_STATUS]
    cmova rdi, qword ptr [r14 + H_NEXT_STATUS]
    ret

sc_s_t: .asciz "\nS t="
sc_s_rounds: .asciz " rounds="
sc_s_pages: .asciz " pages="
sc_s_errors: .asciz " errors="
sc_s_sweep: .asciz " sweep="
sc_s_back: .asciz " clk_back="
sc_s_regs: .asciz " regs="
sc_s_hb: .asciz " hb="
sc_s_gap: .asciz " gap="
sc_s_mismatch: .asciz "\nMISMATCH page="
sc_s_word: .asciz " word="
sc_s_want: .asciz " expected=0x"
sc_s_found: .asciz " found=0x"
sc_s_version: .asciz " version="
sc_s_ready: .asciz "\nSCRIBBLER-READY cpus="
sc_s_ws: .asciz " ws="
sc_s_clock: .asciz " kvmclock="
sc_s_fill: .asciz " fill_ms="
sc_s_ok: .asciz "\nVERIFY ok pages="
sc_s_bad_sweep: .asciz "\nVERIFY BAD pages="
sc_s_now: .asciz " now="
sc_s_first: .asciz " first="
sc_s_off: .asciz "\nSCRIBBLER-POWEROFF\n"
