"""``python -m pipeline.report``."""

from pipeline.report import main

raise SystemExit(main())
