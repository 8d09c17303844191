"""What the measuring programs share: gateways and servers, processes, arithmetic, tables and reports."""
