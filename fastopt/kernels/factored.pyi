import numpy as np

def step(level: str, param: np.ndarray, grad: np.ndarray, row: np.ndarray, col: np.ndarray | None,
         coefficients: tuple[float, float, float, float, float, float, float]) -> None: ...
