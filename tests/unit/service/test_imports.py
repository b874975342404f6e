"""The service starts without the libraries that take seconds to import."""

import subprocess
import sys


def test_the_app_imports_no_torch_ray_or_mlflow() -> None:
    script = (
        "import sys; from service.api.app import create_app; from service.settings import Settings;"
        " create_app(Settings(home='/nonexistent')).openapi();"
        " print(sorted({'torch', 'torchvision', 'ray', 'mlflow', 'sklearn', 'cv2', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
