"""One outside system per module: the GPU driver, model servers, collectors, CloudWatch."""
