"""``python -m npu_core``: report devices, plugins, environment and problems."""

import sys

from npu_core.info import main

sys.exit(main())
