"""Real Prometheus on a real server: the queries of dashboards and alerts, run and shown."""
