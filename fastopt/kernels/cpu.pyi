COMPILER: str
IS_X86: bool

def supports(level: str) -> bool: ...
