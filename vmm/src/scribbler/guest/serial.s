# Text on COM1. r12 = end of the line being built.

# rsi = NUL-terminated text.
sc_puts:
2:  mov al, byte ptr [rsi]
    test al, al
    jz 3f
    mov byte ptr [r12], al
    inc r12
    inc rsi
    jmp 2b
3:  ret

sc_nl:
    mov byte ptr [r12], 10
    inc r12
    ret

# rax in decimal. Clobbers rax, rcx, rdx, rsi.
sc_putn:
    mov ecx, 10
    xor esi, esi
2:  xor edx, edx
    div rcx
    add edx, 48
    push rdx
    inc esi
    test rax, rax
    jnz 2b
3:  pop rdx
    mov byte ptr [r12], dl
    inc r12
    dec esi
    jnz 3b
    ret

# rax in hexadecimal. Clobbers rax, rcx, rdx, rsi.
sc_putx:
    xor esi, esi
2:  mov edx, eax
    and edx, 15
    cmp edx, 10
    jb 3f
    add edx, 39
3:  add edx, 48
    push rdx
    inc esi
    shr rax, 4
    jnz 2b
4:  pop rdx
    mov byte ptr [r12], dl
    inc r12
    dec esi
    jnz 4b
    ret

# rsi = text, rax = number: " name=" then the number.
sc_field:
    push rax
    call sc_puts
    pop rax
    jmp sc_putn

# Starts a line in the common buffer.
sc_line:
    mov r12d, SC_TEXT
    ret

# Sends the common buffer.
sc_flush:
    mov esi, SC_TEXT
# Sends from rsi to r12. One string instruction: one exit for the line.
sc_send:
    mov rcx, r12
    sub rcx, rsi
    mov edx, SC_COM1
    rep outsb
    ret

# 8N1, FIFOs on. The speed means nothing to a virtual port.
sc_serial_init:
    mov edx, SC_COM1 + 3
    mov al, 3
    out dx, al
    mov edx, SC_COM1 + 2
    mov al, 1
    out dx, al
    ret

# Prints rsi (a whole line without its end) and stops this CPU.
sc_fatal:
    push rsi
    call sc_line
    lea rsi, [rip + sc_s_error]
    call sc_puts
    pop rsi
    call sc_puts
    call sc_nl
    call sc_flush
    mov eax, SVC_STOP
    call sc_call
sc_s_error: .asciz "\nSCRIBBLER-ERROR "
